package config

import (
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/wasmsidecar/wasmsidecar/pkg/cron"
)

// Schedule publishes a job at the times that a cron expression names.
type Schedule struct {
	Name     string `yaml:"name"`     // unique; the jobs' ids begin with it
	Cron     string `yaml:"cron"`     // see package cron
	Timezone string `yaml:"timezone"` // of the IANA database
	Route    string `yaml:"route"`    // whose jobs they are; To is then the route's From
	To       string `yaml:"to"`       // subject, topic or stream that they are published to
	Body     string `yaml:"body" hide:"env"`
	BodyFile string `yaml:"body_file"` // in place of Body
	// Headers are the jobs' own, beside those of docs/wire.md.
	Headers map[string]string `yaml:"headers" hide:"env"`
	Key     string            `yaml:"key"`
	// Jitter is the longest time by which a job is published later than it is due; how much it is follows from name and due time.
	Jitter time.Duration `yaml:"jitter" min:"0s" max:"24h"`
	// CatchUp is what becomes of the times that passed while no sidecar ran or the store was away: nothing; one job for all of
	// them; a job for each.
	CatchUp       string        `yaml:"catch_up" enum:"none|last|all"`
	CatchUpWindow time.Duration `yaml:"catch_up_window" min:"1s" max:"168h"` // how far back
}

// DefaultSchedule returns a schedule as it stands before its own keys are read; Name, Cron and Route or To are to be filled in.
func DefaultSchedule() *Schedule {
	return &Schedule{Timezone: "UTC", Headers: map[string]string{}, CatchUp: "last", CatchUpWindow: 24 * time.Hour}
}

// MaxScheduleBody is the largest body of a job where no route says how much it takes.
const MaxScheduleBody Size = 1 << 20

// BodyLimit returns the largest body that a schedule's job may have: what the route takes that reads its subject, if it is one of c.
func (c *Config) BodyLimit(s *Schedule) Size {
	for _, rt := range c.Routes {
		if rt != nil && overlap(rt.From, s.To) {
			return rt.MaxBody
		}
	}
	return MaxScheduleBody
}

// schedules completes every schedule.
func (r *report) schedules(c *Config) {
	names := map[string]int{}
	for i, s := range c.Schedules {
		if s == nil {
			continue
		}
		path := "schedules[" + strconv.Itoa(i) + "]"
		if first, twice := names[s.Name]; twice && s.Name != "" {
			r.failf(path+".name", "%q is the name of schedules[%d]; give each its own, because the jobs' ids begin with it", s.Name, first)
		}
		names[s.Name] = i
		r.schedule(c, s, path)
	}
}

func (r *report) schedule(c *Config, s *Schedule, path string) {
	switch {
	case s.Name == "":
		r.failf(path+".name", "is missing; give it a name of letters, digits, dots, colons, dashes and underscores")
	case !routeName.MatchString(s.Name):
		r.failf(path+".name", "%q has other characters than letters, digits, dots, colons, dashes and underscores, or is longer than 128", s.Name)
	}
	r.due(s, path)
	r.goal(c, s, path)
	r.payload(c, s, path)
	if strings.ContainsFunc(s.Key, unicode.IsControl) || !utf8.ValidString(s.Key) {
		r.failf(path+".key", "has control characters or bytes that are not UTF-8")
	}
}

// due checks when a schedule's jobs are due.
func (r *report) due(s *Schedule, path string) {
	loc, err := cron.Zone(s.Timezone)
	if err != nil {
		r.failf(path+".timezone", "%v", err)
		return
	}
	if s.Cron == "" {
		r.failf(path+".cron", `is missing; write five fields or six, such as "0 30 2 * * *", or @every 90s`)
		return
	}
	e, err := cron.Parse(s.Cron, loc)
	if err != nil {
		r.failf(path+".cron", "%v", err)
		return
	}
	if s.Jitter <= 0 {
		return
	}
	if gap := e.Shortest(); s.Jitter >= gap {
		r.failf(path+".jitter", "%s is as long as the time between two jobs, %s, or longer; make it shorter", formatDuration(s.Jitter), formatDuration(gap))
	}
}

// goal finds out where the jobs are published.
func (r *report) goal(c *Config, s *Schedule, path string) {
	if s.Route != "" {
		from, names := "", []string{}
		for _, rt := range c.Routes {
			if rt == nil {
				continue
			}
			if names = append(names, rt.Name); rt.Name == s.Route {
				from = rt.From
			}
		}
		switch {
		case from == "" && len(names) == 0:
			r.failf(path+".route", "there is no route %q, for there are no routes; name a subject with to", s.Route)
			return
		case from == "":
			r.failf(path+".route", "there is no route %q%s", s.Route, r.suggest(s.Route, names, "there are "))
			return
		case wildcards(from):
			r.failf(path+".route", "route %q reads the pattern %q; name one subject with to", s.Route, from)
			return
		case s.To != "" && s.To != from:
			r.failf(path+".to", "%q is not what route %q reads, %q; keep one of to and route", s.To, s.Route, from)
			return
		}
		s.To = from
	}
	if s.To == "" {
		r.failf(path+".route", "is missing; name a route, or a subject with to")
		return
	}
	if why := checkSubject(c.Transport, s.To, false); why != "" {
		r.failf(path+".to", "%q %s", s.To, why)
		return
	}
	r.state(c, path+".to", s.To)
}

// taken are the headers that a schedule or a sidecar writes itself.
var taken = []string{"Wasm-Job-Id", "Wasm-Schedule", "Wasm-Scheduled-At", "Wasm-Moved", "Wasm-Attempt", "Wasm-Hops"}

// payload checks what the jobs carry.
func (r *report) payload(c *Config, s *Schedule, path string) {
	if s.Body != "" && s.BodyFile != "" {
		r.failf(path+".body_file", "body is given too; keep one")
	}
	if most := c.BodyLimit(s); Size(len(s.Body)) > most && s.To != "" {
		r.failf(path+".body", "has %d bytes, and what it is published to takes %s; make it shorter, or raise max_body of the route", len(s.Body), most)
	}
	for _, name := range sortedKeys(s.Headers) {
		at := joinKey(path+".headers", name)
		switch {
		case !header.MatchString(name):
			r.failf(at, "a header's name has letters, digits and dashes only")
		case strings.EqualFold(name, "Wasm-Key"):
			r.failf(at, "write key beside headers in its place")
		case hasFold(taken, name), len(name) >= 5 && strings.EqualFold(name[:5], "Nats-"):
			r.failf(at, "is written by the sidecar; remove it")
		case strings.ContainsFunc(s.Headers[name], unicode.IsControl) || !utf8.ValidString(s.Headers[name]):
			r.failf(at, "its value has control characters or bytes that are not UTF-8")
		}
	}
}

func hasFold(list []string, s string) bool {
	for _, x := range list {
		if strings.EqualFold(x, s) {
			return true
		}
	}
	return false
}
