package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/cron"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/schedule"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// scheduled makes the jobs of the configuration's schedules, as each of them is but for what tells it from the others. It reads their
// files.
func scheduled(cfg *config.Config) ([]transport.Message, error) {
	var out []transport.Message
	var errs []error
	for _, c := range cfg.Schedules {
		m := transport.Message{Subject: c.To, Body: []byte(c.Body)}
		if c.Key != "" {
			m.Key = []byte(c.Key)
			m.Header.Add(transport.HeaderKey, c.Key)
		}
		for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
			m.Header = append(m.Header, job.Field{Name: name, Value: c.Headers[name]})
		}
		if c.BodyFile != "" {
			var err error
			if m.Body, err = readBody(c.BodyFile, int64(cfg.BodyLimit(c))); err != nil {
				errs = append(errs, fmt.Errorf("schedule %q: body_file: %w", c.Name, err))
			}
		}
		out = append(out, m)
	}
	return out, errors.Join(errs...)
}

func readBody(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %d bytes, which is what a job may have where it is published to; make it shorter, or raise max_body of the route", name, most)
	}
	return b, err
}

// runSchedules publishes the jobs of the schedules until ctx ends. The returned function ends it too, and waits.
func (s *Sidecar) runSchedules(ctx context.Context, p *parts) (stop func(), err error) {
	var all []*schedule.Schedule
	for i, c := range s.cfg.Schedules {
		m := s.scheduled[i]
		if most := p.transport.Publisher().MaxBytes(); most > 0 && m.Size()+1024 > most {
			return nil, configError{fmt.Errorf("schedule %q: its jobs have %d bytes, and the broker takes %d, with 1024 of them for headers; make the body shorter", c.Name, m.Size(), most)}
		}
		loc, err := cron.Zone(c.Timezone)
		if err != nil {
			return nil, configError{fmt.Errorf("schedule %q: %w", c.Name, err)}
		}
		expr, err := cron.Parse(c.Cron, loc)
		if err != nil {
			return nil, configError{fmt.Errorf("schedule %q: %w", c.Name, err)}
		}
		sc, err := schedule.New(schedule.Config{
			Name: c.Name, Expr: expr, Spec: c.Cron + " " + loc.String(), Message: m, Jitter: c.Jitter, CatchUp: schedule.CatchUp(c.CatchUp), Window: c.CatchUpWindow,
			Key: store.Key("schedules", scope(s.cfg), c.Name), Store: p.store, Publisher: p.transport.Publisher(), Observer: s.metrics, Log: s.log,
		})
		if err != nil {
			return nil, err
		}
		all = append(all, sc)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, sc := range all {
		wg.Go(func() { sc.Run(ctx) })
	}
	return func() { cancel(); wg.Wait() }, nil
}
