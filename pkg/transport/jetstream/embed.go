package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// embedTimeout bounds the start of the server, which recovers its streams then.
const embedTimeout = 30 * time.Second

// EmbedConfig describes a NATS server with JetStream inside this process.
type EmbedConfig struct {
	// Dir is the data directory, which is made if it is missing. One server at a time may use it.
	Dir string
	// Listen is host:port for clients outside the process; empty for none, port 0 for any free one. A host beyond loopback needs
	// Username and Password, or Token.
	Listen             string
	Username, Password string
	Token              string
	// SyncAlways writes every message to disk before it is acknowledged, so that it survives a loss of power. Without it that
	// happens every ten seconds; a process that is killed loses nothing in either case.
	SyncAlways bool
	// MaxStore is the most that streams may take on disk, in bytes; 0 means 10 GiB.
	MaxStore int64
	// MaxMemory is the most that streams in memory may take, in bytes; 0 means 64 MiB.
	MaxMemory int64
	// Log may be nil.
	Log *slog.Logger
}

// Server is a NATS server inside this process. It handles no signals.
type Server struct {
	cfg  EmbedConfig
	opts server.Options
	log  *slog.Logger
	lock *dirLock
	once sync.Once
	done chan struct{}
	// What watches over the server; see Err.
	stop    context.CancelFunc
	watched chan struct{}
	port    int // as configured, then as taken: it stays the same
	begun   time.Time
	ample   atomic.Int64 // until when the disk has room, in nanoseconds since begun

	mu      sync.Mutex
	s       *server.Server // nil while there is none
	life    string
	trouble error
}

// Embed starts a server and returns when it takes connections.
func Embed(cfg EmbedConfig) (*Server, error) {
	if cfg.Dir == "" {
		return nil, errors.New("embedded NATS server: no data directory")
	}
	if cfg.MaxStore == 0 {
		cfg.MaxStore = 10 << 30
	}
	if cfg.MaxMemory == 0 {
		cfg.MaxMemory = 64 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	opts := server.Options{
		ServerName: "wasmsidecar", JetStream: true, StoreDir: cfg.Dir, NoSigs: true, DontListen: cfg.Listen == "",
		JetStreamMaxMemory: cfg.MaxMemory, JetStreamMaxStore: cfg.MaxStore,
		SyncInterval: 10 * time.Second, SyncAlways: cfg.SyncAlways,
		Username: cfg.Username, Password: cfg.Password, Authorization: cfg.Token,
	}
	if cfg.Listen != "" {
		if err := listenOn(&opts, cfg); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded NATS server: data directory: %w", err)
	}
	lock, err := lockDir(filepath.Join(cfg.Dir, "wasmsidecar.lock"))
	if err != nil {
		return nil, fmt.Errorf("embedded NATS server: data directory %s: %w", cfg.Dir, err)
	}
	life, err := beginLife(cfg.Dir, true)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded NATS server: data directory %s: %w", cfg.Dir, err), lock.release())
	}
	e := &Server{
		cfg: cfg, opts: opts, log: cfg.Log, lock: lock, port: opts.Port, done: make(chan struct{}), watched: make(chan struct{}),
		begun: time.Now(), life: life,
	}
	if e.s, err = e.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("embedded NATS server: %w", e.full(err)), lock.release())
	}
	if addr, ok := e.s.Addr().(*net.TCPAddr); ok && cfg.Listen != "" {
		e.port = addr.Port
	}
	ctx, stop := context.WithCancel(context.Background())
	e.stop = stop
	go e.watch(ctx)
	return e, nil
}

// listenOn sets the address, after looking who could reach it.
func listenOn(opts *server.Options, cfg EmbedConfig) error {
	host, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return fmt.Errorf("embedded NATS server: listen on %q: want host:port: %w", cfg.Listen, err)
	}
	if opts.Port, err = strconv.Atoi(port); err != nil || opts.Port < 0 || opts.Port > 65535 {
		return fmt.Errorf("embedded NATS server: listen on %q: %q is no port", cfg.Listen, port)
	}
	if opts.Port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	if opts.Host = host; host == "" {
		opts.Host = "0.0.0.0"
	}
	if opts.Port > 0 { // the server's own complaint would come late and name no remedy
		l, err := net.Listen("tcp", cfg.Listen)
		if err != nil {
			return fmt.Errorf("embedded NATS server: listen on %s: %w; choose another address", cfg.Listen, err)
		}
		if err := l.Close(); err != nil {
			return fmt.Errorf("embedded NATS server: listen on %s: %w", cfg.Listen, err)
		}
	}
	ip := net.ParseIP(host)
	loopback := host == "localhost" || ip != nil && ip.IsLoopback()
	if !loopback && (cfg.Username == "" || cfg.Password == "") && cfg.Token == "" {
		return fmt.Errorf("embedded NATS server: listen on %q: others can reach it, so it needs a user name and a password, or a "+
			"token; or listen on 127.0.0.1", cfg.Listen)
	}
	return nil
}

// running is the server, nil while there is none.
func (e *Server) running() *server.Server {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.s
}

// Life names the time since the server was last killed: as long as it stays the same, the server has forgotten nothing.
func (e *Server) Life() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.life
}

// InProcess connects to the server without a network.
func (e *Server) InProcess() nats.InProcessConnProvider { return inProcess{e} }

// inProcess connects to the server that runs at the time.
type inProcess struct{ e *Server }

func (p inProcess) InProcessConn() (net.Conn, error) {
	s := p.e.running()
	if s == nil {
		return nil, errors.Join(errors.New("the embedded NATS server is being started anew"), p.e.Err())
	}
	return s.InProcessConn()
}

// ConnectConfig is how this process connects to the server.
func (e *Server) ConnectConfig() ConnectConfig {
	return ConnectConfig{
		InProcess: e.InProcess(), Username: e.cfg.Username, Password: e.cfg.Password, Token: e.cfg.Token, Name: "wasmsidecar", Log: e.cfg.Log,
	}
}

// ClientURL is where clients outside the process connect to; "" when the server listens nowhere.
func (e *Server) ClientURL() string {
	s := e.running()
	if e.cfg.Listen == "" || s == nil {
		return ""
	}
	return s.ClientURL()
}

// Shutdown stops the server, closes its files and unlocks the directory. When ctx ends first, that goes on without waiting.
func (e *Server) Shutdown(ctx context.Context) error {
	e.once.Do(func() {
		go func() {
			defer close(e.done)
			e.stop()
			<-e.watched
			if s := e.running(); s != nil {
				s.Shutdown()
				s.WaitForShutdown()
				if err := endLife(e.cfg.Dir, e.Life()); err != nil {
					e.log.Warn("note that the embedded NATS server has ended well", "err", err)
				}
			}
			if err := e.lock.release(); err != nil {
				e.log.Warn("unlock the data directory", "err", err)
			}
		}()
	})
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("shut down the embedded NATS server: %w", ctx.Err())
	}
}

// serverLog hands the server's log to slog.
type serverLog struct {
	log  *slog.Logger
	lock *dirLock // unused: as long as the server lives, the file must not be collected, which would unlock it

	mu      sync.Mutex
	trouble string
	fatal   bool
}

// ready waits until the server takes connections or has given up, which it says in its log alone.
func (l *serverLog) ready(s *server.Server) bool {
	for end := time.Now().Add(embedTimeout); time.Now().Before(end); {
		if s.ReadyForConnections(50 * time.Millisecond) {
			return true
		}
		l.mu.Lock()
		fatal := l.fatal
		l.mu.Unlock()
		if fatal {
			return false
		}
	}
	return false
}

func (l *serverLog) keep(format string, v []any) string {
	s := fmt.Sprintf(format, v...)
	l.mu.Lock()
	l.trouble = s
	l.mu.Unlock()
	return s
}

// last is the latest trouble.
func (l *serverLog) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.trouble == "" {
		return "no reason given"
	}
	return l.trouble
}

func (l *serverLog) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) } //nolint:sloglint // the words are the server's
func (l *serverLog) Warnf(format string, v ...any)   { l.log.Warn(l.keep(format, v)) }          //nolint:sloglint // the words are the server's
func (l *serverLog) Errorf(format string, v ...any)  { l.log.Error(l.keep(format, v)) }         //nolint:sloglint // the words are the server's
func (l *serverLog) Fatalf(format string, v ...any) {
	l.log.Error(l.keep(format, v)) //nolint:sloglint // the words are the server's
	l.mu.Lock()
	l.fatal = true
	l.mu.Unlock()
}
func (l *serverLog) Debugf(string, ...any) {}
func (l *serverLog) Tracef(string, ...any) {}
