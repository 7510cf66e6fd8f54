package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	inboxPrefix = "_INBOX."
	// heldFor is how long the replier believes that a stream holds, or does not hold, a subject.
	heldFor = 30 * time.Second
	// heldMost bounds what it remembers.
	heldMost = 1024
)

// replier answers whoever asked: inboxes and other subjects that no stream holds get a message that is not stored, which is lost
// if nobody listens.
type replier struct {
	t *Transport

	mu   sync.Mutex
	held map[string]heldSubject
}

type heldSubject struct {
	held  bool
	until time.Time
}

// MaxBytes is the largest message that the server takes.
func (r *replier) MaxBytes() int { return r.t.payloadRoom() }

// Publish sends the messages and waits until the server has read them.
func (r *replier) Publish(ctx context.Context, ms ...*transport.Message) error {
	start := time.Now()
	var stored []*transport.Message
	var sent []*nats.Msg
	wait, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if err := r.t.awaitConnection(wait, nil); err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	for _, m := range ms {
		held, err := r.isHeld(ctx, m.Subject)
		if err != nil {
			return err
		}
		if held {
			stored = append(stored, m)
			continue
		}
		out := toNATS(m)
		if err := r.t.check(out); err != nil {
			return err
		}
		sent = append(sent, out)
	}
	for _, m := range sent {
		if err := r.t.nc.PublishMsg(m); err != nil {
			return fmt.Errorf("reply to %q: %w", m.Subject, classify(err))
		}
	}
	if len(sent) > 0 {
		if err := r.t.nc.FlushWithContext(wait); err != nil {
			return fmt.Errorf("reply to %q: %w", sent[0].Subject, err)
		}
		if subject := r.refused(start, sent); subject != "" {
			return deniedError(subject)
		}
	}
	if len(stored) > 0 {
		return r.t.pub.Publish(ctx, stored...)
	}
	return nil
}

// refused returns the subject of sent that the server has refused, or "". The refusal comes before the answer to the flush, but
// its handler runs beside us; the connection's last error is there at once.
func (r *replier) refused(start time.Time, sent []*nats.Msg) string {
	if subject := r.t.denials.since(start, ""); subject != "" && ofSubject(sent, subject) {
		return subject
	}
	err := r.t.nc.LastError()
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return ""
	}
	// It may be an old one about the same subject; its permission is missing all the same.
	if m := publishViolation.FindStringSubmatch(err.Error()); m != nil && ofSubject(sent, m[1]) {
		return m[1]
	}
	return ""
}

// isHeld says whether a stream holds a subject.
func (r *replier) isHeld(ctx context.Context, subject string) (bool, error) {
	if strings.HasPrefix(subject, inboxPrefix) {
		return false, nil
	}
	now := time.Now()
	r.mu.Lock()
	h, ok := r.held[subject]
	r.mu.Unlock()
	if ok && now.Before(h.until) {
		return h.held, nil
	}
	if err := transport.ValidSubject(subject); err != nil {
		return false, fmt.Errorf("reply: %w: %w", err, transport.ErrRejected)
	}
	h = heldSubject{held: true, until: now.Add(heldFor)}
	err := r.t.api(ctx, fmt.Sprintf("reply to %q", subject), func(ctx context.Context) error {
		_, err := r.t.js.StreamNameBySubject(ctx, subject)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			h.held, err = false, nil
		}
		return err
	})
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	if len(r.held) >= heldMost {
		clear(r.held)
	}
	r.held[subject] = h
	r.mu.Unlock()
	return h.held, nil
}
