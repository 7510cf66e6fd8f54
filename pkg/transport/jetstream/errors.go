package jetstream

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Codes of JetStream's API errors that need a decision and that nats.go does not name.
const (
	codeSubjectOverlap      = 10065
	codeWorkQueueUnfiltered = 10099
	codeWorkQueueNotUnique  = 10100
)

// classify joins an error from the server with the kind that transport knows, if it is permanent.
func classify(err error) error {
	var ae *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("%w: enable JetStream on the server and for the account: %w", err, transport.ErrUnsupported)
	case errors.As(err, &ae):
		return kindOf(err, ae)
	case errors.Is(err, nats.ErrPermissionViolation), errors.Is(err, nats.ErrBadSubject), errors.Is(err, nats.ErrAuthorization),
		errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked),
		errors.Is(err, jetstream.ErrInvalidSubject):
		return fmt.Errorf("%w: %w", err, transport.ErrRejected)
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w: %w", err, transport.ErrTooLarge)
	}
	return err
}

// kindOf joins err with what ae makes of it. The server's 4xx are about what was asked and do not pass; a store that is full
// (5xx) does, and so do consumers and streams that are gone, which are made again.
func kindOf(err error, ae *jetstream.APIError) error {
	switch ae.ErrorCode {
	case jetstream.JSErrCodeStreamMessageExceedsMaximum:
		return fmt.Errorf("%w: %w", err, transport.ErrTooLarge)
	case jetstream.JSErrCodeConsumerNotFound, jetstream.JSErrCodeStreamNotFound:
		return err
	}
	if ae.Code >= 400 && ae.Code < 500 && ae.Code != 408 && ae.Code != 429 {
		return fmt.Errorf("%w: %w", err, transport.ErrRejected)
	}
	return err
}

// isCode says whether err is JetStream's API error of that code.
func isCode(err error, code int) bool {
	var ae *jetstream.APIError
	return errors.As(err, &ae) && int(ae.ErrorCode) == code
}

var (
	publishViolation = regexp.MustCompile(`(?i)permissions violation for publish to "([^"]+)"`)
	inboxViolation   = regexp.MustCompile(`(?i)permissions violation for subscription to "(_INBOX\.[^"]+)"`)
)

// denials remembers what the server has refused lately. A publish that is not allowed fails nowhere but on the connection's
// error handler.
type denials struct {
	mu    sync.Mutex
	last  [16]denial
	next  int
	inbox bool // no answer can ever come
}

type denial struct {
	subject string
	at      time.Time
}

// listen puts itself before the connection's error handler and tells of each refused subject.
func (d *denials) listen(nc *nats.Conn, tell func(subject string)) {
	before := nc.ErrorHandler()
	nc.SetErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			if m := publishViolation.FindStringSubmatch(err.Error()); m != nil {
				d.mu.Lock()
				d.last[d.next] = denial{m[1], time.Now()}
				d.next = (d.next + 1) % len(d.last)
				d.mu.Unlock()
				tell(m[1])
			}
			if inboxViolation.MatchString(err.Error()) {
				d.mu.Lock()
				d.inbox = true
				d.mu.Unlock()
			}
		}
		if before != nil {
			before(nc, sub, err)
		}
	})
}

// explain says what is not permitted, if that is why a request to a subject with prefix, made after t, has no answer.
func (d *denials) explain(t time.Time, prefix string) error {
	if subject := d.since(t, prefix); subject != "" {
		return fmt.Errorf("the NATS user may not publish to %q; grant it: %w", subject, transport.ErrRejected)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inbox {
		return fmt.Errorf("the NATS user may not subscribe to _INBOX.>, where answers come; grant it: %w", transport.ErrRejected)
	}
	return nil
}

// since returns a subject with prefix that was refused after t, or "".
func (d *denials) since(t time.Time, prefix string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range d.last {
		if x.subject != "" && x.at.After(t) && strings.HasPrefix(x.subject, prefix) {
			return x.subject
		}
	}
	return ""
}
