// Package config reads the configuration file: strict YAML into a Config, with every mistake reported at once by file, line
// and column.
//
// Keys that the file leaves out have the values of Default; configs/reference.yaml shows them all. ${NAME} and
// ${NAME:-default} are replaced inside values after the file is parsed, so that no value can change its shape; $${ stands for
// a plain ${. Secrets print as ***. The package knows YAML and nothing else: it opens no module and no connection. Other
// packages have their own Config structs, into which pkg/sidecar translates this one.
package config

import "time"

// Transports and stores.
const (
	Embedded = "embedded" // a NATS server with JetStream inside the process, durable in a directory
	Kafka    = "kafka"    // transport only
	Redis    = "redis"
	NATS     = "nats"
	Memory   = "memory" // gone with the process
)

// Config is the whole configuration. Parse, Load and Complete return it resolved: no field waits for a default.
//
// The tags are the schema. yaml: the key, and after a comma another name for it; enum: the values that are taken; min and
// max: bounds; later: keys or values that are known and refused because they are not built yet; addrs: a list that may also
// be written as one string with commas; hide: what comes from the environment prints as ***.
type Config struct {
	Transport string `yaml:"transport" enum:"embedded|kafka|redis|nats|memory"` // where jobs come from and results go
	// Store is where claims and outcomes are kept. Left out, it is the transport's own; Kafka has none, so there it must be said.
	Store string `yaml:"store" enum:"embedded|redis|nats|memory"`
	// Replicas is how many sidecars share the work; 0 means not known, perhaps many. A store that only one process can see is
	// refused beside a shared transport unless it is 1.
	Replicas int `yaml:"replicas" min:"0" max:"100000"`
	// OnStoreError is what happens while the store is away: pause stops taking jobs until it is back; run goes on without claims, so
	// that jobs may run twice.
	OnStoreError string `yaml:"on_store_error" enum:"pause|run"`
	// MemoryBudget is what the memory of all guests together may take: a job waits until its limits.memory fits. 0: three fifths of
	// what the process may have.
	MemoryBudget Size `yaml:"memory_budget" min:"0B"`
	// ConnectTimeout is how long the start waits for broker and store; 0 waits for ever.
	ConnectTimeout time.Duration `yaml:"connect_timeout" min:"0s" max:"24h"`

	Embedded EmbeddedConfig `yaml:"embedded"`
	Kafka    KafkaConfig    `yaml:"kafka"`
	Redis    RedisConfig    `yaml:"redis"`
	NATS     NATSConfig     `yaml:"nats"`
	Memory   MemoryConfig   `yaml:"memory"`

	Modules map[string]*Module `yaml:"modules"` // by name
	Routes  []*Route           `yaml:"routes"`
	// Schedules publish jobs at the times of cron expressions.
	Schedules []*Schedule `yaml:"schedules"`

	Admin Admin `yaml:"admin"`
	Log   Log   `yaml:"log"`
	Drain Drain `yaml:"drain"`
	Cache Cache `yaml:"cache"`
	// Compile bounds the compilation of modules.
	Compile Compile `yaml:"compile"`

	Reload Reload `yaml:"reload"`

	hidden []string // paths that print as ***
}

// EmbeddedConfig is the NATS server inside the process.
type EmbeddedConfig struct {
	Dir string `yaml:"dir"` // data directory, locked while in use
	// Listen is host:port for NATS clients outside the process; empty for none. Beyond loopback it needs Username and Password.
	Listen     string        `yaml:"listen"`
	Username   string        `yaml:"username"`
	Password   Secret        `yaml:"password"`
	Durability string        `yaml:"durability" enum:"fast|power-safe"` // fast: written to disk every 10 s; power-safe: before each answer
	MaxStore   Size          `yaml:"max_store" min:"1MiB"`              // most bytes on disk
	MaxMemory  Size          `yaml:"max_memory" min:"1MiB"`             // most bytes of streams kept in memory
	MaxAge     time.Duration `yaml:"max_age" min:"0s"`                  // how long results and dead letters are kept; 0: for ever
}

// NATSConfig is a NATS server with JetStream, as transport, store or both. At most one of username and password, token, nkey
// and creds may be given.
type NATSConfig struct {
	URLs     []string      `yaml:"urls,url" addrs:"yes"`
	Username string        `yaml:"username"`
	Password Secret        `yaml:"password"`
	Token    Secret        `yaml:"token"`
	NKey     string        `yaml:"nkey"`  // file with an nkey seed
	Creds    string        `yaml:"creds"` // file with a JWT and an nkey seed
	TLS      TLS           `yaml:"tls"`
	Group    string        `yaml:"group"`                      // names consumers; sidecars of one group share the work
	Name     string        `yaml:"name"`                       // of the connection, as the server shows it
	Create   bool          `yaml:"create"`                     // make streams and buckets that are missing
	Replicas int           `yaml:"replicas" min:"1" max:"5"`   // of streams and buckets that are made
	Storage  string        `yaml:"storage" enum:"file|memory"` // of streams and buckets that are made
	MaxAge   time.Duration `yaml:"max_age" min:"0s"`           // of results and dead letters in streams that are made; 0: for ever
}

// RedisConfig is a Redis server, a Sentinel set (Master) or a cluster (Cluster), as transport, store or both.
type RedisConfig struct {
	Addrs            []string `yaml:"addrs,addr" addrs:"yes"` // host:port of the server, the Sentinels or some cluster nodes
	Master           string   `yaml:"master"`                 // name of the master that the Sentinels watch
	Cluster          bool     `yaml:"cluster"`
	Username         string   `yaml:"username"`
	Password         Secret   `yaml:"password"`
	SentinelUsername string   `yaml:"sentinel_username"`
	SentinelPassword Secret   `yaml:"sentinel_password"`
	DB               int      `yaml:"db" min:"0" max:"65535"`
	TLS              TLS      `yaml:"tls"`
	Group            string   `yaml:"group"`           // consumer group; sidecars of one group share the work
	Prefix           string   `yaml:"prefix"`          // of the keys that hold state
	Create           bool     `yaml:"create"`          // make streams and groups that are missing
	MaxLen           int64    `yaml:"max_len" min:"0"` // about how many entries result and dead-letter streams keep; 0: all
}

// KafkaConfig is a Kafka cluster.
type KafkaConfig struct {
	Brokers  []string `yaml:"brokers" addrs:"yes"`
	Group    string   `yaml:"group"`                                          // consumer group; sidecars of one group share the work
	ClientID string   `yaml:"client_id"`                                      // as the broker's logs and quotas name it
	Protocol string   `yaml:"protocol" enum:"classic|consumer" later:"share"` // group protocol; consumer is KIP-848, Kafka 4.0 and newer
	// SessionTimeout is the silence after which a member's partitions move on; 0 with protocol consumer, where the broker sets it.
	SessionTimeout  time.Duration `yaml:"session_timeout" max:"30m"`
	CommitInterval  time.Duration `yaml:"commit_interval" min:"10ms" max:"1m"` // between commits of what is settled
	Linger          time.Duration `yaml:"linger" min:"0s" max:"10s"`           // how long a record waits for others to share its batch, where some are on their way already
	DeliveryTimeout time.Duration `yaml:"delivery_timeout" min:"1s" max:"1h"`  // after which a record that is not taken has failed
	Compression     string        `yaml:"compression" enum:"none|gzip|snappy|lz4|zstd"`
	Create          bool          `yaml:"create"`                           // make topics that are missing
	Partitions      int           `yaml:"partitions" min:"1" max:"100000"`  // of topics that are made
	Replication     int           `yaml:"replication" min:"-1" max:"32767"` // of topics that are made; -1: as the broker has it
	TLS             TLS           `yaml:"tls"`
	SASL            SASL          `yaml:"sasl"`

	_ struct{} `later:"compat" why:"not supported, because Watermill's own subscribers are not built in; remove it"`
}

// SASL is how a client proves itself to Kafka.
type SASL struct {
	Mechanism    string `yaml:"mechanism" enum:"|PLAIN|SCRAM-SHA-256|SCRAM-SHA-512|OAUTHBEARER|AWS_MSK_IAM"` // empty: none
	Username     string `yaml:"username"`                                                                    // PLAIN and SCRAM
	Password     Secret `yaml:"password"`
	Token        Secret `yaml:"token"`      // OAUTHBEARER
	TokenFile    string `yaml:"token_file"` // OAUTHBEARER: read at each login, so that it may be replaced
	AccessKey    string `yaml:"access_key"` // AWS_MSK_IAM
	SecretKey    Secret `yaml:"secret_key"`
	SessionToken Secret `yaml:"session_token"`
}

// MemoryConfig is transport and store in the process's own memory.
type MemoryConfig struct {
	MaxStore Size `yaml:"max_store" min:"1MiB"` // most bytes of state
}

// TLS secures a connection. Its files are PEM.
type TLS struct {
	Enabled            bool   `yaml:"enabled"`     // left out of a file, it is true as soon as another key is given
	CA                 string `yaml:"ca"`          // file; empty: the system's
	Cert               string `yaml:"cert"`        // file, for client certificates
	Key                string `yaml:"key"`         // file
	ServerName         string `yaml:"server_name"` // to verify, where it is not the address
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
}

// Module is a WebAssembly module and what it may do.
type Module struct {
	// Source is a path or file:// URL; a directory stands for the file <name>.wasm in it. Relative to the working directory.
	Source string            `yaml:"source"`
	SHA256 string            `yaml:"sha256"`            // of the file, in lower-case hex; empty: any
	Config map[string]string `yaml:"config" hide:"env"` // handed to the guest
	ABI    string            `yaml:"abi" enum:"auto|pull|command|drasm|extism|shallabuf"`
	// Function is the export that an Extism plug-in is called by; empty: handle, else run, else the only one.
	Function string `yaml:"function"`
	Engine   string `yaml:"engine" enum:"compiler|interpreter"`
	// Isolation is what separates jobs: instances that are reset after each (frozen: and programs go on from their first read
	// whatever they did before), or made for each, or used again as they are.
	Isolation string   `yaml:"isolation" enum:"reset|frozen|fresh|reuse"`
	Limits    Limits   `yaml:"limits"`
	Allow     Allow    `yaml:"allow"`
	Env       Env      `yaml:"env"`
	Args      []string `yaml:"args" hide:"env"` // of a command, after its name
}

// Limits bound one run of a guest.
type Limits struct {
	Memory       Size          `yaml:"memory" min:"64KiB" max:"4GiB"`
	Time         time.Duration `yaml:"time" min:"1ms" max:"24h"`                     // wall time
	Fuel         Count         `yaml:"fuel" min:"0" max:"1000T" zero:"unlimited"`    // instructions; 0: unlimited
	Depth        int           `yaml:"depth" min:"0" max:"1000000" zero:"unlimited"` // calls within calls; 0: until the stack overflows
	Output       Size          `yaml:"output" min:"0B" max:"1GiB"`
	HostCalls    Count         `yaml:"host_calls" min:"0" max:"1000T" zero:"unlimited"` // calls of host functions; 0: unlimited
	Log          Size          `yaml:"log" min:"0B" max:"1GiB"`                         // of log lines, standard error included
	LogLines     int           `yaml:"log_lines" min:"0" max:"1000000"`
	HTTPRequests int           `yaml:"http_requests" min:"0" max:"1000000"`
	HTTPBody     Size          `yaml:"http_body" min:"0B" max:"1GiB"`   // of a request, and of a response
	HTTPTotal    Size          `yaml:"http_total" min:"0B" max:"64GiB"` // of all requests and responses together
	HTTPTime     time.Duration `yaml:"http_time" min:"1ms" max:"24h"`   // of one request
	Files        int           `yaml:"files" min:"0" max:"10000"`       // open at once
	FileBytes    Size          `yaml:"file_bytes" min:"0B"`             // written to files
}

// RouteLimits tighten the Limits of the modules that a route runs: of each the smaller one counts. The fields are those of
// Limits. nil is what the route's module has, or the most that any has where jobs name the module; Complete fills it in.
type RouteLimits struct {
	Memory       *Size          `yaml:"memory" min:"64KiB" max:"4GiB"`
	Time         *time.Duration `yaml:"time" min:"1ms" max:"24h"`
	Fuel         *Count         `yaml:"fuel" min:"0" max:"1000T"`
	Depth        *int           `yaml:"depth" min:"0" max:"1000000"`
	HostCalls    *Count         `yaml:"host_calls" min:"0" max:"1000T"`
	Output       *Size          `yaml:"output" min:"0B" max:"1GiB"`
	Log          *Size          `yaml:"log" min:"0B" max:"1GiB"`
	LogLines     *int           `yaml:"log_lines" min:"0" max:"1000000"`
	HTTPRequests *int           `yaml:"http_requests" min:"0" max:"1000000"`
	HTTPBody     *Size          `yaml:"http_body" min:"0B" max:"1GiB"`
	HTTPTotal    *Size          `yaml:"http_total" min:"0B" max:"64GiB"`
	HTTPTime     *time.Duration `yaml:"http_time" min:"1ms" max:"24h"`
	Files        *int           `yaml:"files" min:"0" max:"10000"`
	FileBytes    *Size          `yaml:"file_bytes" min:"0B"`
}

// Allow grants capabilities; what is not granted is denied.
type Allow struct {
	HTTP  []string `yaml:"http"`  // host, host:port, *.domain or *.domain:port; without a port 443 and 80
	Files []*Dir   `yaml:"files"` // directories whose files a guest that uses WASI may use

	_ struct{} `later:"blob publish kv secret"`
}

// Dir is a directory of the host that a guest is granted.
type Dir struct {
	Dir   string `yaml:"dir"`
	As    string `yaml:"as"` // where the guest finds it; Default: / and the directory's name
	Write bool   `yaml:"write"`
}

// Env is the environment of a guest.
type Env struct {
	Headers bool              `yaml:"headers"` // the job's headers, CGI style
	Vars    map[string]string `yaml:"vars" hide:"env"`
}

// Route leads jobs from a subject through a module to another subject.
type Route struct {
	Name string `yaml:"name"` // unique; scopes job ids. Default: From
	From string `yaml:"from"` // subject, topic or stream of the jobs; wildcards on NATS only
	// Module is a module's name, or a template such as "{header.Wasm-Module}" that is filled in from the job's headers.
	Module      string   `yaml:"module"`
	To          string   `yaml:"to"`          // where results go; empty: nowhere
	DeadLetter  string   `yaml:"dead_letter"` // Default: From with _dlq behind it
	Concurrency int      `yaml:"concurrency" min:"1" max:"4096"`
	Order       string   `yaml:"order" enum:"none|key"`
	Envelope    string   `yaml:"envelope" enum:"none|drasm|watermill" later:"cloudevents"`
	Reply       []string `yaml:"reply"` // patterns of the reply subjects that jobs may name. Default: _INBOX.> on NATS, else none
	Retry       Retry    `yaml:"retry"`
	Dedup       Dedup    `yaml:"dedup"`
	Breaker     Breaker  `yaml:"breaker"`
	// Lease is the silence after which a job is given to another sidecar; 0 with dedup: off on Kafka, where there is none.
	Lease   time.Duration `yaml:"lease" max:"1h"`
	Timeout time.Duration `yaml:"timeout" min:"0s" max:"24h"`   // of one attempt; 0: the module's limits.time alone
	MaxBody Size          `yaml:"max_body" min:"1B" max:"1GiB"` // larger jobs are invalid
	Limits  RouteLimits   `yaml:"limits"`                       // of one run; they never widen the module's own
}

// Retry is what becomes of an attempt that failed and may be made again.
type Retry struct {
	MaxAttempts int           `yaml:"max_attempts" min:"0" max:"1000000"` // the first included; 0: no end
	Backoff     time.Duration `yaml:"backoff" min:"1ms" max:"24h"`        // before the second attempt; doubles from then on
	MaxBackoff  time.Duration `yaml:"max_backoff" min:"1ms" max:"720h"`
	Jitter      string        `yaml:"jitter" enum:"full|none"`           // full: each wait is drawn from zero to the backoff; none: it is the backoff
	MaxCrashes  int           `yaml:"max_crashes" min:"0" max:"1000000"` // runs that may end with the whole process before the job is dead; 0: no end
}

// Breaker stops taking jobs of a module that keeps failing: by trap, timeout, internal or upstream. Without Consecutive and Percent it
// never does.
type Breaker struct {
	Consecutive int           `yaml:"consecutive" min:"0" max:"1000000"` // after so many in a row; 0: never
	Percent     int           `yaml:"percent" min:"0" max:"100"`         // when so many percent within Window failed; 0: never
	Min         int           `yaml:"min" min:"1" max:"1000000"`         // for Percent: of at least so many jobs
	Window      time.Duration `yaml:"window" min:"1s" max:"1h"`          // for Percent: how far back is counted
	Open        time.Duration `yaml:"open" min:"100ms" max:"1h"`         // how long no job runs; then one tries
}

// Dedup is how long the outcome of a job is kept, so that the job seen again gives the same outcome without running.
type Dedup struct {
	Off bool          `yaml:",off"`                     // nothing is claimed and nothing recorded; written dedup: off
	TTL time.Duration `yaml:"ttl" min:"1s" max:"8760h"` // how long a job's outcome is known
	// Results is how long its body is kept; after that a job seen again is settled without output, so it must outlast any
	// outage of the result subject. Default: TTL.
	Results time.Duration `yaml:"results" max:"8760h"`
	// Claim says when a job is claimed before it runs. With auto, a module that was granted nothing runs the first delivery of a
	// job without: nobody could see that it ran twice, and one outcome is recorded.
	Claim string `yaml:"claim" enum:"auto|always"`
}

// Admin is the HTTP server for health and metrics.
type Admin struct {
	Listen string `yaml:"listen"` // host:port; empty or off: none
	Public bool   `yaml:"public"` // Listen may be reachable from outside; there is no authentication
}

// Log is how the sidecar speaks.
type Log struct {
	Format string `yaml:"format" enum:"text|json"`
	Level  string `yaml:"level" enum:"debug|info|warn|error"`
}

// Drain is the end of the sidecar.
type Drain struct {
	Timeout time.Duration `yaml:"timeout" min:"1ms" max:"24h"` // what running jobs get to finish
}

// Cache is where compiled modules are kept.
type Cache struct {
	Off     bool   `yaml:",off"`              // compile at each start; written cache: off
	Dir     string `yaml:"dir"`               // empty: a private directory in the user's cache directory
	MaxSize Size   `yaml:"max_size" min:"0B"` // beyond it what was not used for the longest time is removed; 0: no bound
}

// Compile is what a module gets to be compiled.
type Compile struct {
	Timeout time.Duration `yaml:"timeout" min:"1s" max:"24h"` // one that takes longer is refused
}

// Reload is when the sidecar looks whether files of modules have changed. SIGHUP has it look in any case.
type Reload struct {
	Off      bool          `yaml:",off"`                          // at SIGHUP only; written reload: off
	Interval time.Duration `yaml:"interval" min:"10ms" max:"24h"` // between two looks
}

// Default returns the configuration of an empty file. It has no modules and no routes; those that are added begin as
// DefaultModule and DefaultRoute.
func Default() *Config {
	return &Config{
		Transport:      Embedded,
		Store:          Embedded,
		OnStoreError:   "pause",
		ConnectTimeout: time.Minute,
		Embedded: EmbeddedConfig{
			Dir: "wasmsidecar-data", Durability: "fast", MaxStore: 10 << 30, MaxMemory: 64 << 20, MaxAge: 7 * 24 * time.Hour,
		},
		Kafka: KafkaConfig{
			Brokers: []string{"localhost:9092"}, Group: "wasmsidecar", ClientID: "wasmsidecar", Protocol: "classic",
			SessionTimeout: 6 * time.Second, CommitInterval: 200 * time.Millisecond, Linger: time.Millisecond,
			DeliveryTimeout: 30 * time.Second, Compression: "none", Create: true, Partitions: 3, Replication: 1,
		},
		Redis: RedisConfig{Addrs: []string{"localhost:6379"}, Group: "wasmsidecar", Prefix: "wasm:", Create: true},
		NATS: NATSConfig{
			URLs: []string{"nats://localhost:4222"}, Group: "wasmsidecar", Name: "wasmsidecar", Create: true, Replicas: 1, Storage: "file",
			MaxAge: 7 * 24 * time.Hour,
		},
		Memory:  MemoryConfig{MaxStore: 256 << 20},
		Modules: map[string]*Module{},
		Routes:  []*Route{}, Schedules: []*Schedule{},
		Admin:   Admin{Listen: "127.0.0.1:9464"},
		Log:     Log{Format: "text", Level: "info"},
		Drain:   Drain{Timeout: 30 * time.Second},
		Cache:   Cache{MaxSize: 1 << 30},
		Compile: Compile{Timeout: 2 * time.Minute},
		Reload:  Reload{Interval: 5 * time.Second},
	}
}

// DefaultModule returns a module as it stands before its own keys are read; Source is to be filled in.
func DefaultModule() *Module {
	return &Module{
		Config: map[string]string{}, ABI: "auto", Engine: "compiler", Isolation: "reset",
		Limits: Limits{
			Memory: 64 << 20, Time: 10 * time.Second, Fuel: 100e9, Depth: 50_000, HostCalls: 10e6, Output: 1 << 20, Log: 64 << 10, LogLines: 1000,
			HTTPRequests: 16, HTTPBody: 1 << 20, HTTPTotal: 16 << 20, HTTPTime: 10 * time.Second, Files: 64, FileBytes: 64 << 20,
		},
		Allow: Allow{HTTP: []string{}, Files: []*Dir{}}, Env: Env{Vars: map[string]string{}}, Args: []string{},
	}
}

// DefaultRoute returns a route as it stands before its own keys are read; From and Module are to be filled in, and Complete
// derives Name, DeadLetter, Reply and Dedup.Results.
func DefaultRoute() *Route {
	return &Route{
		Concurrency: 64, Order: "none", Envelope: "none",
		Retry:   Retry{MaxAttempts: 3, Backoff: time.Second, MaxBackoff: time.Minute, Jitter: "full", MaxCrashes: 3},
		Dedup:   Dedup{TTL: 24 * time.Hour, Claim: "auto"},
		Breaker: Breaker{Min: 20, Window: time.Minute, Open: 30 * time.Second},
		Lease:   30 * time.Second, MaxBody: 1 << 20,
	}
}
