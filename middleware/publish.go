package middleware

import (
	"context"
	"fmt"

	"github.com/wasmsidecar/wasmsidecar/internal/crash"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// outputs writes what a recorded outcome leads to.
type outputs struct{ cfg Config }

// check says why an outcome could never be published; nil when it can. It is asked before the outcome is recorded.
func (p *outputs) check(j *job.Job, o *job.Outcome) error {
	limit := p.cfg.Publisher.MaxBytes()
	if limit == 0 || p.cfg.To == "" {
		return nil
	}
	// A body may grow up to fivefold in a DRASM envelope; only what comes near the limit is built to be measured.
	if 5*len(o.Body)+2*o.Header.Size()+4096 < limit {
		return nil
	}
	if n := transport.Result(j, o, p.cfg.Envelope, p.cfg.To).Size(); n > limit {
		return job.Errorf(job.KindLimit, "the result is %d bytes with its headers, the broker takes %d: make the result smaller or raise the broker's limit", n, limit)
	}
	return nil
}

// joint returns what makes endings, where the store can take along what the publisher makes; nil where every job ends step by step.
func (p *outputs) joint() func(context.Context, *job.Exchange) transport.Ending {
	pub, ok := p.cfg.Publisher.(transport.Joint)
	if !ok || p.cfg.Claims == nil {
		return nil
	}
	if st, ok := p.cfg.Claims.st.(store.Joiner); !ok || !st.Joins(pub.Database()) {
		return nil
	}
	return func(ctx context.Context, x *job.Exchange) transport.Ending {
		d, ok := x.Delivery.(transport.Delivery)
		if !ok || x.Job.ReplyTo != "" || p.dead(x.Outcome) {
			return nil // more than one message is to be published
		}
		var m *transport.Message
		if p.hasResult(x.Job) {
			m = transport.Result(x.Job, x.Outcome, p.cfg.Envelope, p.cfg.To)
		}
		return pub.Ending(ctx, d, m)
	}
}

// hasResult says whether a result of j is published. A job that came round a loop of routes has none: it would be the next job, for ever.
func (p *outputs) hasResult(j *job.Job) bool { return p.cfg.To != "" && j.Hops < job.MaxHops }

// dead says whether an outcome leads to a dead letter.
func (p *outputs) dead(o *job.Outcome) bool {
	return p.cfg.DeadLetter != "" && o.Kind.Fate().DeadLetter
}

// Publish emits the recorded outcome of a job to the route's result subject, and to the job's reply subject if it has one. It
// does so the first time and every time that the job is seen. A result that the broker refuses for good turns the record into
// a failure, whose result is small.
func Publish(p *outputs) Stage {
	return func(next job.Handler) job.Handler {
		return func(ctx context.Context, x *job.Exchange) error {
			if err := next(ctx, x); err != nil || x.Outcome == nil {
				return err
			}
			if x.Published {
				crash.At(crash.AfterPublish)
				return nil
			}
			err := p.result(ctx, x)
			if err == nil || !transport.Permanent(err) {
				return err
			}
			if x.Amend == nil || x.Outcome.Kind == job.KindInternal {
				p.cfg.Log.Error("the result is refused by the broker", "route", p.cfg.Route, "job_id", x.Job.ID, "to", p.cfg.To, "err", err)
				return err
			}
			o := *x.Outcome
			o.Kind, o.Dead, o.Body, o.Header = job.KindInternal, false, nil, nil
			o.Err = job.CleanText(fmt.Sprintf("the result could not be published to %s: %v", p.cfg.To, err))
			if err := x.Amend(ctx, &o); err != nil || x.Outcome == nil {
				return err // without an outcome the claim was lost, and the message is left
			}
			return p.result(ctx, x)
		}
	}
}

func (p *outputs) result(ctx context.Context, x *job.Exchange) error {
	j, o := x.Job, x.Outcome
	if p.hasResult(j) {
		if err := p.send(ctx, p.cfg.Publisher, j, transport.Result(j, o, p.cfg.Envelope, p.cfg.To)); err != nil {
			return fmt.Errorf("publish the result to %q: %w", p.cfg.To, err)
		}
	}
	crash.At(crash.AfterPublish)
	if j.ReplyTo == "" {
		return nil
	}
	err := p.send(ctx, p.cfg.Replier, j, transport.Result(j, o, p.cfg.Envelope, j.ReplyTo))
	if err != nil && transport.Permanent(err) {
		// Whoever asked for the reply named a subject that takes none; the result itself is out.
		p.cfg.Log.Warn("the reply is refused by the broker", "route", p.cfg.Route, "job_id", j.ID, "reply_to", job.CleanText(j.ReplyTo), "err", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("publish the reply to %q: %w", j.ReplyTo, err)
	}
	return nil
}

// send publishes a result, without its key where the broker takes it only so: a key may leave no room for anything beside it.
func (p *outputs) send(ctx context.Context, to transport.Publisher, j *job.Job, m *transport.Message) error {
	err := to.Publish(ctx, m)
	if err == nil || !transport.Permanent(err) || len(m.Key) == 0 {
		return err
	}
	bare := *m
	bare.Key = nil
	if berr := to.Publish(ctx, &bare); berr != nil {
		return berr
	}
	p.cfg.Log.Warn("the result is refused by the broker and went out without its key", "route", p.cfg.Route, "job_id", j.ID, "to", m.Subject, "err", err)
	return nil
}

// DeadLetter emits a dead letter for a recorded outcome whose kind calls for one, before the message is settled and every time
// that the job is seen.
func DeadLetter(p *outputs) Stage {
	return func(next job.Handler) job.Handler {
		return func(ctx context.Context, x *job.Exchange) error {
			if err := next(ctx, x); err != nil || x.Outcome == nil {
				return err
			}
			j, o := x.Job, x.Outcome
			if !p.dead(o) {
				return nil
			}
			orig := &transport.Message{Subject: j.Subject, Key: keyOf(j), Header: j.Header, ReplyTo: j.ReplyTo, Body: j.Raw}
			letter := transport.DeadLetter(j, o, orig, p.cfg.DeadLetter, p.cfg.Publisher.MaxBytes())
			err := p.cfg.Publisher.Publish(ctx, letter)
			if err != nil && transport.Permanent(err) && len(orig.Header) > 0 {
				p.cfg.Log.Warn("the dead letter is refused by the broker and goes out without the original headers", "route", p.cfg.Route, "job_id", j.ID, "err", err)
				err = p.cfg.Publisher.Publish(ctx, transport.BareDeadLetter(j, o, orig, p.cfg.DeadLetter, p.cfg.Publisher.MaxBytes()))
			}
			if err != nil {
				return fmt.Errorf("publish the dead letter to %q: %w", p.cfg.DeadLetter, err)
			}
			x.Settlement = job.Settlement{Verb: job.Dead, Reason: string(o.Kind) + ": " + o.Err}
			return nil
		}
	}
}

func keyOf(j *job.Job) []byte {
	if j.Key == "" {
		return nil
	}
	return []byte(j.Key)
}
