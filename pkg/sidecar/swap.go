package sidecar

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/module"
	"github.com/wasmsidecar/wasmsidecar/pkg/telemetry"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// maxOld is how many replaced versions of a module may still be running jobs.
const maxOld = 3

// slot is a module of the configuration: the runner whose version may change while jobs run.
type slot struct {
	name    string
	cfg     *config.Module
	current atomic.Pointer[runtime.Module]
	old     atomic.Int32 // versions that were replaced and still run jobs

	// What follows is the watcher's.
	mark    module.Mark // of what current, or what was refused last, was made from
	seen    module.Mark // at the last look
	missing bool        // at the last look
	refused string      // why, or the digest of what
}

// Run runs the job on the version that is current when it begins.
func (s *slot) Run(ctx context.Context, j *job.Job) (res *job.Result, err error) {
	s.with(ctx, func(m *runtime.Module) error {
		res, err = m.Run(ctx, j)
		return err
	})
	return res, err
}

// Pure implements job.Pure. What a module is granted comes from the configuration, whatever its version.
func (s *slot) Pure() bool { return s.current.Load().Pure() }

// limited is a slot with a route's limits beside the module's own.
type limited struct {
	s       *slot
	l       runtime.Limits
	bounded atomic.Pointer[bounded] // of the version that ran last
}

// bounded is a version with the limits.
type bounded struct {
	m *runtime.Module
	b *runtime.Bounded
}

// of is m within the limits.
func (r *limited) of(m *runtime.Module) *runtime.Bounded {
	if b := r.bounded.Load(); b != nil && b.m == m {
		return b.b
	}
	b := &bounded{m, m.Within(r.l)}
	r.bounded.Store(b)
	return b.b
}

// Run is slot.Run within the limits.
func (r *limited) Run(ctx context.Context, j *job.Job) (res *job.Result, err error) {
	r.s.with(ctx, func(m *runtime.Module) error {
		res, err = r.of(m).Run(ctx, j)
		return err
	})
	return res, err
}

// Pure implements job.Pure.
func (r *limited) Pure() bool { return r.s.Pure() }

// admit waits until there is memory for a job, which then runs on the version that is current now. The context is for the run;
// release must be called after it.
func (r *limited) admit(ctx context.Context, j *job.Job) (running context.Context, release func(), err error) {
	r.s.with(ctx, func(m *runtime.Module) error {
		running, release, err = r.of(m).Admit(ctx, j)
		return err
	})
	return running, release, err
}

// with calls f with the version that the job was admitted to, else the one that is current. It does so again if that was replaced
// and closed between the two, when f has done nothing yet.
func (s *slot) with(ctx context.Context, f func(*runtime.Module) error) {
	if m := runtime.Admitted(ctx); m != nil && m.Name() == s.name {
		_ = f(m) // which keeps it
		return
	}
	for {
		m := s.current.Load()
		if err := f(m); !errors.Is(err, runtime.ErrClosed) || s.current.Load() == m {
			return
		}
	}
}

func (s *slot) ref() module.Ref {
	return module.Ref{Name: s.name, Source: s.cfg.Source, SHA256: s.cfg.SHA256}
}

// open loads the first version.
func (s *slot) open(ctx context.Context, ms *modules) error {
	mark, markErr := ms.source.Mark(s.ref())
	bin, err := ms.source.Fetch(ctx, s.ref())
	if err != nil {
		return err
	}
	if markErr == nil {
		s.mark, s.seen = mark, mark
	}
	m, err := ms.load(ctx, s.name, s.cfg, bin.Wasm)
	if err != nil {
		return err
	}
	s.current.Store(m)
	return nil
}

// gauges says how many versions there are of each module.
func (ms *modules) gauges() []telemetry.ModuleGauge {
	out := make([]telemetry.ModuleGauge, 0, len(ms.slots))
	for _, s := range ms.slots {
		out = append(out, telemetry.ModuleGauge{Module: s.name, Versions: 1 + int(s.old.Load())})
	}
	return out
}

// watch looks for modules that have changed until ctx ends: at the interval, and whenever now says so. swapped is told of each
// change that was found.
func (ms *modules) watch(ctx context.Context, cfg config.Reload, now <-chan struct{}, swapped func(module string, ok bool)) {
	var tick <-chan time.Time
	if !cfg.Off {
		t := time.NewTicker(cfg.Interval)
		defer t.Stop()
		tick = t.C
	}
	for {
		asked := false
		select {
		case <-ctx.Done():
			return
		case <-tick:
		case <-now:
			asked = true
		}
		changed := false
		for _, s := range ms.slots {
			found, err := ms.look(ctx, s, asked)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				ms.log.Error("changed module is refused; the version before it goes on", "module", s.name, "digest", s.current.Load().Digest(), "err", err)
			}
			if found {
				changed = true
				swapped(s.name, err == nil)
			}
		}
		if asked && !changed {
			ms.log.Info("no module has changed")
		}
	}
}

// look swaps a module whose source has changed. It reports whether there was something new, and why it was refused. Unless it was
// asked for, a change has to look the same twice, for it may still be going on, and is refused once only.
func (ms *modules) look(ctx context.Context, s *slot, asked bool) (found bool, err error) {
	if s.old.Load() >= maxOld {
		ms.log.Debug("module is not looked at while so many of its older versions run jobs", "module", s.name, "versions", maxOld)
		return false, nil
	}
	mark, err := ms.source.Mark(s.ref())
	if err != nil {
		first := !s.missing
		s.missing = true
		if first && !asked {
			return false, nil
		}
		return s.refuse(err.Error(), err, asked)
	}
	s.missing = false
	if !asked {
		if mark.Same(s.mark) && s.mark.Certain() {
			return false, nil
		}
		settled := mark.Same(s.seen)
		if s.seen = mark; !settled {
			return false, nil
		}
	}
	bin, err := ms.source.Fetch(ctx, s.ref())
	if err != nil {
		s.mark = mark
		return s.refuse(err.Error(), err, asked)
	}
	if bin.Digest == s.current.Load().Digest() {
		s.mark, s.refused = mark, ""
		return false, nil
	}
	s.mark = mark
	if bin.Digest == s.refused && !asked {
		return false, nil
	}
	if err := ms.swap(ctx, s, bin.Wasm); err != nil {
		return s.refuse(bin.Digest, err, true)
	}
	s.refused = ""
	return true, nil
}

// refuse keeps in mind what was refused, so that it is said once.
func (s *slot) refuse(what string, err error, again bool) (bool, error) {
	if s.refused == what && !again {
		return false, nil
	}
	s.refused = what
	return true, err
}

// swap makes a version of wasm and gives it the jobs that begin from now on. The version before is closed when its last job is
// over.
func (ms *modules) swap(ctx context.Context, s *slot, wasm []byte) error {
	start := time.Now()
	next, err := ms.load(ctx, s.name, s.cfg, wasm)
	if err != nil {
		return err
	}
	if err := next.Try(ctx); err != nil {
		return errors.Join(err, next.Close(context.WithoutCancel(ctx)))
	}
	before := s.current.Swap(next)
	ms.log.Info("module swapped", "module", s.name, "digest", next.Digest(), "before", before.Digest(), "duration", time.Since(start))
	s.old.Add(1)
	ms.ending.Go(func() {
		defer s.old.Add(-1)
		if err := before.Close(ms.until); err == nil { // else the engine waits for the rest
			ms.log.Debug("version of a module is freed", "module", s.name, "digest", before.Digest())
		}
	})
	return nil
}
