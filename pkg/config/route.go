package config

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// routes completes every route and holds them against one another.
func (r *report) routes(c *Config) {
	for i, rt := range c.Routes {
		if rt != nil {
			r.route(c, rt, "routes["+strconv.Itoa(i)+"]")
		}
	}
	for i, rt := range c.Routes {
		if rt == nil {
			continue
		}
		path := "routes[" + strconv.Itoa(i) + "]"
		for j, other := range c.Routes[:i] {
			switch {
			case other == nil:
			case rt.From != "" && overlap(rt.From, other.From) && !(c.Transport == NATS && !c.NATS.Create):
				hint := ""
				if c.Transport == NATS { // a stream that was not made here may have several readers
					hint = "; where the stream allows several readers, say nats.create: false"
				}
				r.failf(path+".from", "%q is read by routes[%d], from %q; a job goes to one route only%s", rt.From, j, other.From, hint)
			case rt.Name != "" && rt.Name == other.Name:
				r.failf(path+".name", "%q is the name of routes[%d]; give each its own, because names scope job ids", rt.Name, j)
			}
		}
	}
	r.topicTwins(c)
}

var routeName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}$`)

func (r *report) route(c *Config, rt *Route, path string) {
	r.from(c, rt, path)
	r.target(c, rt, path+".to", rt.To)
	r.target(c, rt, path+".dead_letter", rt.DeadLetter)
	r.template(c, rt, path+".module")
	r.order(c, rt, path+".order")
	r.routeLimits(c, rt, path+".limits")

	if rt.Reply == nil {
		rt.Reply = []string{}
		if c.Transport == NATS || c.Transport == Embedded {
			rt.Reply = []string{"_INBOX.>"}
		}
	}
	for i, p := range rt.Reply {
		if why := checkSubject(c.Transport, p, true); why != "" {
			r.failf(fmt.Sprintf("%s.reply[%d]", path, i), "%q %s", p, why)
		}
	}
	r.dedup(&rt.Dedup, path+".dedup")
	r.lease(c, rt, path+".lease")
	if rt.Retry.MaxBackoff < rt.Retry.Backoff {
		r.failf(path+".retry.max_backoff", "%s is less than backoff, %s", formatDuration(rt.Retry.MaxBackoff), formatDuration(rt.Retry.Backoff))
	}
}

// lease refuses one that nobody would hold: Kafka has none, and without dedup there are no claims.
func (r *report) lease(c *Config, rt *Route, path string) {
	switch none := c.Transport == Kafka && rt.Dedup.Off; {
	case r.wrong[path]:
	case none && !r.given(path):
		rt.Lease = 0
	case none && rt.Lease != 0:
		r.failf(path, "does nothing with dedup: off on kafka, which gives jobs to another sidecar after kafka.session_timeout; remove it")
	case !none && rt.Lease < time.Second:
		r.failf(path, "%s is too small; the least is 1s", formatDuration(rt.Lease))
	}
}

// dedup keeps outputs as long as ids unless told otherwise.
func (r *report) dedup(c *Dedup, path string) {
	switch at := path + ".results"; {
	case c.Off || r.wrong[path+".ttl"]:
	case c.Results == 0 && !r.given(at):
		c.Results = c.TTL
	case c.Results < time.Second:
		r.failf(at, "%s is too small; the least is 1s", formatDuration(c.Results))
	case c.Results > c.TTL:
		r.failf(at, "%s is more than ttl, %s, after which the job itself is forgotten", formatDuration(c.Results), formatDuration(c.TTL))
	}
}

// from checks the subject of the jobs and derives from it the route's name and dead-letter subject.
func (r *report) from(c *Config, rt *Route, path string) {
	if rt.From == "" {
		r.failf(path+".from", "is missing; name the subject, topic or stream that jobs come from")
		return
	}
	wild := wildcards(rt.From)
	if wild && c.Transport != NATS && c.Transport != Embedded && !r.wrong["transport"] {
		r.failf(path+".from", "%q has wildcards, which work on nats and embedded only; name one subject", rt.From)
		return
	}
	if why := checkSubject(c.Transport, rt.From, true); why != "" {
		r.failf(path+".from", "%q %s", rt.From, why)
		return
	}
	r.state(c, path+".from", rt.From)
	switch {
	case rt.Name == "" && routeName.MatchString(rt.From):
		rt.Name = rt.From
	case rt.Name == "":
		r.failf(path+".name", "is missing, and %q cannot be one; give a name of letters, digits, dots, colons, dashes and underscores", rt.From)
	case !routeName.MatchString(rt.Name):
		r.failf(path+".name", "%q has other characters than letters, digits, dots, colons, dashes and underscores, or is longer than 128", rt.Name)
	}
	switch {
	case rt.DeadLetter != "":
	case wild:
		r.failf(path+".dead_letter", "is missing, and none follows from the pattern %q; name a subject", rt.From)
	default:
		rt.DeadLetter = rt.From + "_dlq"
	}
}

// target checks a subject that the route writes to.
func (r *report) target(c *Config, rt *Route, path, s string) {
	if s == "" {
		return
	}
	if why := checkSubject(c.Transport, s, false); why != "" {
		r.failf(path, "%q %s", s, why)
		return
	}
	r.state(c, path, s)
	if rt.From != "" && overlap(rt.From, s) {
		r.failf(path, "%q is read by this route itself, which would be a loop; name another subject", s)
	}
}

// state refuses a Redis stream among the keys of the sidecar's own state.
func (r *report) state(c *Config, path, s string) {
	if c.Transport == Redis && c.Redis.Prefix != "" && strings.HasPrefix(s, c.Redis.Prefix) {
		r.failf(path, "%q begins with redis.prefix, %q, where the sidecar keeps its state; name another", s, c.Redis.Prefix)
	}
}

var header = regexp.MustCompile(`^[A-Za-z0-9!#$%&'*+.^_|~-]+$`)

// template checks the module of a route: a name, or a text with {header.NAME} in it.
func (r *report) template(c *Config, rt *Route, path string) {
	if rt.Module == "" {
		r.failf(path, "is missing; name a module, or write \"{header.Wasm-Module}\"")
		return
	}
	if r.wrong["modules"] {
		return
	}
	if !strings.ContainsAny(rt.Module, "{}") {
		if _, ok := c.Modules[rt.Module]; !ok && len(c.Modules) == 0 {
			r.failf(path, "there is no module %q, for there are no modules; add it under modules", rt.Module)
		} else if !ok {
			r.failf(path, "there is no module %q%s", rt.Module, r.suggest(rt.Module, sortedKeys(c.Modules), "there are "))
		}
		return
	}
	for rest := rt.Module; rest != ""; {
		plain, after, _ := strings.Cut(rest, "{")
		inner, next, closed := strings.Cut(after, "}")
		name, ok := strings.CutPrefix(inner, "header.")
		switch {
		case strings.Contains(plain, "}"), plain != rest && (!closed || !ok || !header.MatchString(name)):
			r.failf(path, "%q is no template; what it may hold is written {header.Wasm-Module}", rt.Module)
			return
		}
		rest = next
	}
	if len(c.Modules) == 0 {
		r.failf(path, "there are no modules for %q to name; add them under modules", rt.Module)
	}
}

// order refuses order by key where several sidecars may hold jobs of one key and no lease tells whose turn it is.
func (r *report) order(c *Config, rt *Route, path string) {
	if rt.Order != "key" || c.Replicas == 1 {
		return
	}
	if c.Transport == Embedded && c.Embedded.Listen != "" {
		r.failf(path, "several sidecars may take jobs of one key from %s; say replicas: 1, or use nats, redis or kafka", c.Transport)
	}
}

// OrderedByLease says that a lease in the store decides which sidecar runs the route: its order is kept by one at a time, on a
// broker that does not see to that itself.
func (c *Config) OrderedByLease(r *Route) bool {
	return r.Order == "key" && c.Replicas != 1 && (c.Transport == NATS || c.Transport == Redis)
}

// topicTwins refuses topics that differ in dots and underscores alone, of which Kafka takes the first only.
func (r *report) topicTwins(c *Config) {
	if c.Transport != Kafka {
		return
	}
	seen := map[string]string{}
	for i, rt := range c.Routes {
		if rt == nil {
			continue
		}
		for _, t := range []struct{ key, topic string }{{"from", rt.From}, {"to", rt.To}, {"dead_letter", rt.DeadLetter}} {
			flat := strings.ReplaceAll(t.topic, ".", "_")
			if other, ok := seen[flat]; ok && other != t.topic {
				r.failf(fmt.Sprintf("routes[%d].%s", i, t.key), "%q and %q are one topic to Kafka, which takes . and _ for the same in names", t.topic, other)
				continue
			}
			seen[flat] = t.topic
		}
	}
}

// checkSubject says what is wrong with s as a subject of a transport, or "". A pattern may have wildcards.
func checkSubject(transport, s string, pattern bool) string {
	tokens := strings.Split(s, ".")
	switch {
	case strings.ContainsAny(s, "{}"):
		return "holds a template, which only module may"
	case !pattern && wildcards(s):
		return "has wildcards, and a message is written to one subject"
	case slices.Contains(tokens[:len(tokens)-1], ">"):
		return "has > before its end; it stands for the rest and comes last"
	case slices.ContainsFunc(tokens, func(t string) bool { return len(t) > 1 && strings.ContainsAny(t, "*>") }):
		return "has * or > inside a token; a wildcard is a token of its own, between dots"
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) }):
		return "has white space, control characters or bytes that are not UTF-8"
	case len(s) > 249:
		return "is longer than 249 bytes"
	}
	switch transport {
	case Kafka:
		if s == "." || s == ".." || !topic.MatchString(s) {
			return "is not a topic; Kafka takes letters, digits, dots, dashes and underscores"
		}
	case NATS, Embedded, Memory:
		if slices.Contains(tokens, "") {
			return "has an empty token; dots stand between tokens"
		}
		if strings.HasPrefix(s, "$") {
			return "begins with $, which belongs to the NATS server"
		}
	}
	return ""
}

// topic admits wildcards, which stand in patterns only.
var topic = regexp.MustCompile(`^[A-Za-z0-9._*>-]+$`)

// wildcards says whether a subject has a token * or >.
func wildcards(s string) bool {
	tokens := strings.Split(s, ".")
	return slices.Contains(tokens, "*") || slices.Contains(tokens, ">")
}

// overlap says whether a subject exists that both patterns match, by the rules of NATS.
func overlap(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; i < len(x) && i < len(y); i++ {
		if x[i] == ">" || y[i] == ">" {
			return true
		}
		if x[i] != y[i] && x[i] != "*" && y[i] != "*" {
			return false
		}
	}
	return len(x) == len(y)
}
