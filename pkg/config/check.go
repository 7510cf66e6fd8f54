package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxEntries is the most modules, routes and schedules; each is a runtime, a consumer or a timer of its own.
const maxEntries = 1000

// complete derives what was left out and reports everything that is wrong.
func (r *report) complete(c *Config) {
	r.rules(reflect.ValueOf(c).Elem(), "")
	r.completeStore(c)
	r.embedded(&c.Embedded)
	r.nats(&c.NATS)
	r.redis(&c.Redis)
	r.kafka(&c.Kafka)
	r.admin(&c.Admin, c.Embedded.Listen)
	if len(c.Modules) > maxEntries {
		r.failf("modules", "%d modules are too many; the most is %d", len(c.Modules), maxEntries)
		return
	}
	if len(c.Routes) > maxEntries {
		r.failf("routes", "%d routes are too many; the most is %d", len(c.Routes), maxEntries)
		return
	}
	if len(c.Schedules) > maxEntries {
		r.failf("schedules", "%d schedules are too many; the most is %d", len(c.Schedules), maxEntries)
		return
	}
	for _, name := range sortedKeys(c.Modules) {
		r.module(name, c.Modules[name])
	}
	r.routes(c)
	r.schedules(c)
}

// rules holds every field to the enum, min and max of its tag.
func (r *report) rules(v reflect.Value, path string) {
	s := schemaOf(v.Type())
	for i := range v.NumField() {
		name, ok := s.name[i]
		if !ok {
			continue
		}
		f, tag, at := v.Field(i), v.Type().Field(i).Tag, join(path, name)
		switch f.Kind() {
		case reflect.Struct:
			r.rules(f, at)
		case reflect.Slice:
			for j := range f.Len() {
				r.element(f.Index(j), at+"["+strconv.Itoa(j)+"]")
			}
		case reflect.Map:
			for _, key := range mapKeys(f) {
				r.element(f.MapIndex(reflect.ValueOf(key)), joinKey(at, key))
			}
		case reflect.String:
			if enum, ok := tag.Lookup("enum"); ok {
				r.enum(f.String(), strings.Split(enum, "|"), strings.Fields(tag.Get("later")), at)
			}
		case reflect.Pointer:
			if !f.IsNil() {
				r.bounds(f.Elem(), tag, at)
			}
		case reflect.Int, reflect.Int64:
			r.bounds(f, tag, at)
		}
	}
}

func (r *report) element(v reflect.Value, path string) {
	if v.Kind() != reflect.Pointer {
		return
	}
	if v.IsNil() {
		r.failf(path, "has no value")
		return
	}
	r.rules(v.Elem(), path)
}

func (r *report) enum(s string, values, later []string, path string) {
	switch {
	case slices.Contains(values, s) || path == "store" && s == "": // derived later
	case slices.Contains(later, s):
		r.failf(path, "%q is not supported yet; use %s", s, strings.Join(values, " or "))
	default:
		r.failf(path, "unknown value %q%s", s, r.suggest(s, values, "use one of "))
	}
}

func (r *report) bounds(f reflect.Value, tag reflect.StructTag, path string) {
	for _, end := range []string{"min", "max"} {
		text, ok := tag.Lookup(end)
		if !ok {
			continue
		}
		bound := reflect.New(f.Type()).Elem()
		if err := parse(bound, text); err != nil {
			panic("config: tag of " + path + ": " + err.Error())
		}
		if end == "min" && f.Int() < bound.Int() {
			r.failf(path, "%s is too small; the least is %s", format(f), text)
		}
		if end == "max" && f.Int() > bound.Int() {
			r.failf(path, "%s is too large; the most is %s", format(f), text)
		}
	}
}

// completeStore derives the store from the transport and refuses one that other sidecars would not see.
func (r *report) completeStore(c *Config) {
	if r.wrong["transport"] || r.wrong["store"] {
		return
	}
	if c.Store == "" {
		if c.Transport == Kafka {
			r.failf("store", "kafka keeps no state; say store: redis or store: nats, or store: embedded with replicas: 1")
			return
		}
		c.Store = c.Transport
	}
	if c.Transport == Memory && c.Replicas > 1 {
		r.failf("replicas", "%d sidecars cannot share the memory transport, which is one process's own; use embedded, redis, nats or kafka", c.Replicas)
	}
	shared := c.Transport != Memory && c.Transport != Embedded
	own := c.Store == Memory || c.Store == Embedded
	if shared && own && c.Replicas != 1 {
		r.failf("store", "only one process sees a store of kind %s, and several may take jobs from %s; use redis or nats, or say replicas: 1",
			c.Store, c.Transport)
	}
}

func (r *report) embedded(c *EmbeddedConfig) {
	r.need("embedded.dir", c.Dir)
	c.Listen = r.listen("embedded.listen", c.Listen)
	r.pair("embedded.username", c.Username, "embedded.password", c.Password.Reveal())
	if c.Listen != "" && !loopback(c.Listen) && c.Username == "" {
		r.failf("embedded.listen", "%s can be reached from outside; set embedded.username and embedded.password, or listen on 127.0.0.1", c.Listen)
	}
}

var natsGroup = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (r *report) nats(c *NATSConfig) {
	r.addresses("nats.urls", c.URLs, r.natsURL)
	ways := 0
	for _, s := range []string{c.Username, c.Token.Reveal(), c.NKey, c.Creds} {
		if s != "" {
			ways++
		}
	}
	if ways > 1 {
		r.failf("nats", "username and password, token, nkey and creds exclude one another; keep one")
	}
	if c.Password != "" && c.Username == "" {
		r.failf("nats.password", "there is no nats.username")
	}
	if !natsGroup.MatchString(c.Group) {
		r.failf("nats.group", "%q cannot name consumers; use letters, digits, _ and -, at most 64", c.Group)
	}
	r.need("nats.name", c.Name)
	r.tls("nats.tls", &c.TLS)
}

// natsURL reports what is wrong with one server's address. It does not quote an address that holds credentials.
func (r *report) natsURL(path, s string) {
	if !strings.Contains(s, "://") {
		r.address(path, s)
		return
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		r.failf(path, "not a URL; write nats://host:port")
	case u.User != nil:
		r.failf(path, "credentials do not belong in the URL; set nats.username and nats.password, or nats.token")
	case !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme):
		r.failf(path, "unknown scheme %q; use nats://, tls://, ws:// or wss://", u.Scheme)
	case u.Hostname() == "":
		r.failf(path, "%q has no host; write nats://host:port", s)
	}
}

func (r *report) redis(c *RedisConfig) {
	r.addresses("redis.addrs", c.Addrs, r.address)
	r.need("redis.group", c.Group)
	r.need("redis.prefix", c.Prefix)
	switch {
	case c.Cluster && c.Master != "":
		r.failf("redis.master", "a cluster has no Sentinels; keep redis.cluster or redis.master")
	case c.Cluster && c.DB != 0:
		r.failf("redis.db", "a cluster has database 0 only")
	case !c.Cluster && c.Master == "" && len(c.Addrs) > 1:
		r.failf("redis.addrs", "several addresses need redis.cluster: true, or redis.master for Sentinels")
	}
	if c.Master == "" && (c.SentinelUsername != "" || c.SentinelPassword != "") {
		r.failf("redis.master", "sentinel_username and sentinel_password need the name of the master")
	}
	if c.Username != "" && c.Password == "" {
		r.failf("redis.password", "redis.username needs one")
	}
	r.tls("redis.tls", &c.TLS)
}

func (r *report) kafka(c *KafkaConfig) {
	r.addresses("kafka.brokers", c.Brokers, r.address)
	r.need("kafka.group", c.Group)
	r.need("kafka.client_id", c.ClientID)
	if c.Replication == 0 {
		r.failf("kafka.replication", "0 is no replication; use 1 or more, or -1 for what the broker has set")
	}
	switch at := "kafka.session_timeout"; {
	case c.Protocol == "consumer" && !r.given(at):
		c.SessionTimeout = 0
	case c.Protocol == "consumer" && c.SessionTimeout != 0:
		r.failf(at, "with protocol consumer the broker sets it (group.consumer.session.timeout.ms); remove it")
	case c.Protocol == "classic" && c.SessionTimeout < time.Second:
		r.failf(at, "%s is too small; the least is 1s", formatDuration(c.SessionTimeout))
	}
	r.tls("kafka.tls", &c.TLS)
	r.sasl("kafka.sasl", &c.SASL)
}

// sasl asks for what the mechanism needs and refuses what it would ignore.
func (r *report) sasl(path string, c *SASL) {
	if r.wrong[path+".mechanism"] {
		return
	}
	need, may := []string{}, []string{}
	switch c.Mechanism {
	case "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512":
		need = []string{"username", "password"}
	case "AWS_MSK_IAM":
		need, may = []string{"access_key", "secret_key"}, []string{"session_token"}
	case "OAUTHBEARER":
		may = []string{"token", "token_file"}
		if (c.Token == "") == (c.TokenFile == "") {
			r.failf(path, "OAUTHBEARER needs either token or token_file")
		}
	}
	v := reflect.ValueOf(*c)
	s := schemaOf(v.Type())
	for i := range v.NumField() {
		name := s.name[i]
		switch set := v.Field(i).String() != ""; {
		case name == "mechanism":
		case slices.Contains(need, name) && !set:
			r.failf(path+"."+name, "%s needs one", c.Mechanism)
		case set && c.Mechanism == "":
			r.failf(path+"."+name, "there is no mechanism; set %s.mechanism", path)
		case set && !slices.Contains(need, name) && !slices.Contains(may, name):
			r.failf(path+"."+name, "%s does not use it; remove it", c.Mechanism)
		}
	}
}

// tls turns TLS on where the file gives one of its keys, but not enabled itself.
func (r *report) tls(path string, c *TLS) {
	if r.given(path) && !r.given(path+".enabled") {
		c.Enabled = *c != TLS{}
	}
	r.pair(path+".cert", c.Cert, path+".key", c.Key)
}

var (
	moduleName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	digest     = regexp.MustCompile(`^[0-9a-f]{64}$`)
	scheme     = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]+):`)
)

func (r *report) module(name string, m *Module) {
	path := joinKey("modules", name)
	if m == nil || r.wrong[path] {
		return
	}
	if !moduleName.MatchString(name) {
		r.failf(path, "a module's name has letters, digits, dots, dashes and underscores only, begins with a letter or digit, and is at most 128 long")
	}
	if m.Source == "" {
		r.failf(path+".source", "is missing; name a .wasm file or a directory")
	} else if s := scheme.FindStringSubmatch(m.Source); s != nil && s[1] != "file" {
		r.failf(path+".source", "sources of kind %s: are not supported yet; use a path or file:// URL", s[1])
	}
	if m.SHA256 = strings.ToLower(m.SHA256); m.SHA256 != "" && !digest.MatchString(m.SHA256) {
		r.failf(path+".sha256", "not a SHA-256; write the 64 hex digits that sha256sum prints")
	}
	for i, h := range m.Allow.HTTP {
		r.httpHost(fmt.Sprintf("%s.allow.http[%d]", path, i), h)
	}
	r.files(m.Allow.Files, path+".allow.files")
	for _, key := range sortedKeys(m.Env.Vars) {
		if strings.ContainsAny(key, "=\x00") || strings.ContainsRune(m.Env.Vars[key], 0) {
			r.failf(joinKey(path+".env.vars", key), "an environment variable has no = in its name and no NUL byte")
		}
	}
	if slices.Contains([]string{"pull", "drasm", "extism", "shallabuf"}, m.ABI) && len(m.Args) > 0 {
		r.failf(path+".args", "only commands have arguments, and abi is %s; remove it", m.ABI)
	}
	if slices.Contains([]string{"pull", "command", "drasm", "shallabuf"}, m.ABI) && m.Function != "" {
		r.failf(path+".function", "only Extism plug-ins have a function to choose, and abi is %s; remove it", m.ABI)
	}
}

// httpHost reports what is wrong with an entry of allow.http.
func (r *report) httpHost(path, s string) {
	host, port := s, ""
	if _, err := netip.ParseAddr(strings.Trim(s, "[]")); err != nil {
		if i := strings.LastIndexByte(s, ':'); i >= 0 {
			host, port = s[:i], s[i+1:]
		}
	} else {
		return
	}
	_, addr := netip.ParseAddr(strings.Trim(host, "[]"))
	domain, wild := strings.CutPrefix(host, "*.")
	switch {
	case strings.ContainsAny(s, "/@?# \t"):
		r.failf(path, "%q is more than a host; write host or host:port, without scheme, user and path", s)
	case port != "" && !validPort(port, 1), strings.HasSuffix(s, ":"):
		r.failf(path, "%q has no valid port; use 1 to 65535", s)
	case wild && !strings.Contains(domain, "."):
		r.failf(path, "%q would open a whole top-level domain; write *.example.com", s)
	case addr != nil && (domain == "" || strings.ContainsAny(domain, "*:[]") || strings.HasPrefix(domain, ".")):
		r.failf(path, "%q is no host; write host, host:port or *.domain", s)
	}
}

func (r *report) admin(c *Admin, embeddedListen string) {
	c.Listen = r.listen("admin.listen", c.Listen)
	if c.Listen == "" {
		return
	}
	if !loopback(c.Listen) && !c.Public {
		r.failf("admin.listen", "%s can be reached from outside and has no authentication; listen on 127.0.0.1, or say admin.public: true", c.Listen)
	}
	if c.Listen == embeddedListen && !strings.HasSuffix(c.Listen, ":0") {
		r.failf("admin.listen", "%s is taken by embedded.listen", c.Listen)
	}
}

// listen checks an address to listen on and returns it; off is another word for none.
func (r *report) listen(path, s string) string {
	if s == "off" {
		return ""
	}
	if s == "" {
		return s
	}
	if _, port, err := net.SplitHostPort(s); err != nil || !validPort(port, 0) {
		r.failf(path, "%q is not an address to listen on; write host:port, or off", s)
	}
	return s
}

// addresses checks a list that needs at least one entry.
func (r *report) addresses(path string, list []string, check func(path, s string)) {
	if len(list) == 0 {
		r.failf(path, "is empty; name at least one host:port")
	}
	for i, s := range list {
		check(path+"["+strconv.Itoa(i)+"]", s)
	}
}

func (r *report) address(path, s string) {
	host, port, err := net.SplitHostPort(s)
	switch {
	case strings.Contains(s, "@"):
		r.failf(path, "credentials do not belong in the address; use username and password")
	case strings.Contains(s, "://"):
		r.failf(path, "%q has a scheme; write host:port", s)
	case err != nil || host == "" || !validPort(port, 1):
		r.failf(path, "%q is not host:port", s)
	}
}

func (r *report) need(path, value string) {
	if value == "" {
		r.failf(path, "is empty; give it a value or remove the key")
	}
}

// pair wants both of two keys or neither.
func (r *report) pair(path1, s1, path2, s2 string) {
	if s1 != "" && s2 == "" {
		r.failf(path1, "needs %s beside it", path2)
	}
	if s1 == "" && s2 != "" {
		r.failf(path2, "needs %s beside it", path1)
	}
}

func validPort(s string, least int) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n >= least && n <= 65535
}

// loopback says whether an address can be reached from this machine only.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return true // reported elsewhere
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
