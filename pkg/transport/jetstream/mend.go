package jetstream

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	// watchEvery is how often the server is asked whether it can write.
	watchEvery = time.Second
	// trialSize is what has to fit into the directory before a server that could not write is started anew.
	trialSize = 2 << 20
	// keepMost and keepLeast bound what is kept free of the disk, of which it is an eighth otherwise; see Err. Jobs that are under way
	// when that is reached still write, so it is more than they bring together.
	keepMost  = 256 << 20
	keepLeast = 4 << 20
	// restartPause follows a restart, longer each time, until the server has been sound for as long as restartPauseMax.
	restartPause    = time.Second
	restartPauseMax = time.Minute
	// scarceEvery is how often the disk is asked for its free space at most, as every write asks here; but every time once there is less
	// than scarceNear beside what is kept, which can be written within that.
	scarceEvery = 10 * time.Millisecond
	scarceNear  = 128 << 20
)

// Err says what keeps the server from storing messages, and what to do; nil where nothing does.
//
// nats-server writes no more to a stream of which one write has failed, for want of room above all, and does not answer who
// publishes to it. So once the directory takes writes again the server is started anew, in place: clients connect again.
//
// This process writes nothing to a disk that is nearly full, so that the stream of the state never meets a full one: nats-server
// 2.15.2 counts the messages that a failed write has lost from sequence 1 on, in memory, where the block's first message was cut off,
// and that stream's sequences begin at many billions.
func (e *Server) Err() error {
	e.mu.Lock()
	trouble := e.trouble
	e.mu.Unlock()
	if trouble != nil {
		return trouble
	}
	return e.scarce()
}

// scarce says that no more of the disk is free than is kept so.
func (e *Server) scarce() error {
	now := time.Since(e.begun)
	if time.Duration(e.ample.Load()) > now {
		return nil
	}
	free, total := space(e.cfg.Dir)
	keep := kept(total)
	if free < keep {
		return e.fullError(free, total)
	}
	if free > keep+scarceNear {
		e.ample.Store(int64(now + scarceEvery))
	}
	return nil
}

// kept is how much of a disk stays free.
func kept(total uint64) uint64 {
	if total == 0 {
		return 0 // it cannot be told
	}
	return min(max(total/8, keepLeast), keepMost)
}

// watch mends the server until ctx ends.
func (e *Server) watch(ctx context.Context) {
	defer close(e.watched)
	wait, sound := restartPause, time.Now()
	for pause(ctx, watchEvery) == nil {
		s := e.running()
		err := broken(s)
		if s != nil && err == nil {
			if e.note(e.scarce()); time.Since(sound) > restartPauseMax {
				wait = restartPause
			}
			continue
		}
		sound = time.Now()
		if trial := tryWrite(e.cfg.Dir); trial != nil {
			e.note(e.diskError(trial))
			continue
		}
		if err != nil {
			e.note(fmt.Errorf("embedded NATS server: data directory %s: %w; it takes writes again, the server is being started anew", e.cfg.Dir, err))
		}
		if err := e.restart(s); err != nil {
			e.note(fmt.Errorf("embedded NATS server: start it anew: %w", err))
		}
		if pause(ctx, wait) != nil {
			return
		}
		wait = min(2*wait, restartPauseMax)
	}
}

// broken says which write of the server has failed for good.
func broken(s *server.Server) error {
	if s == nil {
		return nil
	}
	if !s.JetStreamEnabled() {
		return errors.New("JetStream was switched off after a write that failed")
	}
	for _, e := range s.Healthz(&server.HealthzOptions{Details: true}).Errors {
		if e.Type == server.HealthzErrorStream && strings.Contains(e.Error, "write error") {
			return errors.New(e.Error)
		}
	}
	return nil
}

// tryWrite says whether a directory takes a file of some size.
func tryWrite(dir string) (err error) {
	f, err := os.CreateTemp(dir, "trial-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if _, err := f.Write(make([]byte, trialSize)); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

// diskError says what to do about a write that failed.
func (e *Server) diskError(err error) error {
	if !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("embedded NATS server: data directory %s takes no writes: %w; mend that, and the server goes on by itself", e.cfg.Dir, err)
	}
	return e.fullError(space(e.cfg.Dir))
}

func (e *Server) fullError(free, total uint64) error {
	const mib = 1 << 20
	return fmt.Errorf("embedded NATS server: the disk under %s is full, %.1f of %.0f MiB are free, of which %.1f stay so: make room, and the "+
		"server goes on by itself: %w", e.cfg.Dir, float64(free)/mib, float64(total)/mib, float64(kept(total))/mib, syscall.ENOSPC)
}

// full adds to an error that the disk is full, where it is.
func (e *Server) full(err error) error {
	if trial := tryWrite(e.cfg.Dir); trial != nil {
		return fmt.Errorf("%w (%w)", err, e.diskError(trial))
	}
	return err
}

// note keeps what is wrong and logs where it begins and ends.
func (e *Server) note(err error) {
	e.mu.Lock()
	before := e.trouble
	e.trouble = err
	e.mu.Unlock()
	switch {
	case err != nil && before == nil:
		e.log.Error("the embedded NATS server cannot store messages", "dir", e.cfg.Dir, "err", err)
	case err == nil && before != nil:
		e.log.Warn("the embedded NATS server stores messages again", "dir", e.cfg.Dir)
	}
}

// restart ends a server, which may be nil, and starts another on the same directory and port.
func (e *Server) restart(old *server.Server) error {
	e.mu.Lock()
	e.s = nil // nobody connects meanwhile
	e.mu.Unlock()
	if old != nil {
		old.Shutdown()
		old.WaitForShutdown()
	}
	s, err := e.start()
	if err != nil {
		return err
	}
	life, err := beginLife(e.cfg.Dir, false) // a write has failed: who knows which
	if err != nil {
		s.Shutdown()
		return err
	}
	e.mu.Lock()
	e.s, e.life = s, life
	e.mu.Unlock()
	return nil
}

// start starts a server on the directory and returns when it takes connections.
func (e *Server) start() (*server.Server, error) {
	opts := e.opts
	opts.Port = e.port
	s, err := server.NewServer(&opts)
	if err != nil {
		return nil, err
	}
	log := &serverLog{log: e.log.With("part", "nats-server"), lock: e.lock}
	s.SetLoggerV2(log, false, false, false)
	s.Start()
	if !log.ready(s) || !s.JetStreamEnabled() {
		err := fmt.Errorf("not ready: %s", log.last())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.Shutdown()
			s.WaitForShutdown()
		}()
		select {
		case <-ended:
		case <-time.After(embedTimeout):
			err = fmt.Errorf("%w; and it does not end", err)
		}
		return nil, err
	}
	return s, nil
}
