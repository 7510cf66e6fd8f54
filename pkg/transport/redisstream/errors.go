package redisstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// replyError is an error reply that was read by ourselves.
type replyError string

func (e replyError) Error() string { return string(e) }

// RedisError marks it as the server's word, as go-redis does with its own.
func (replyError) RedisError() {}

// replied says whether err is the server's answer rather than a failure to get one.
func replied(err error) bool {
	var r redis.Error
	return errors.As(err, &r) && !errors.Is(err, redis.Nil)
}

// hasCode says whether the server answered with the error code. Scripts wrap the codes of the commands that they call.
func hasCode(err error, code string) bool {
	if !replied(err) {
		return false
	}
	s := err.Error()
	return strings.HasPrefix(s, code+" ") || strings.Contains(s, " "+code+" ") || strings.Contains(s, "-"+code+" ")
}

// redirected says that another node of a cluster has the key, or will have it soon.
func redirected(err error) bool { return hasCode(err, "MOVED") || hasCode(err, "ASK") }

// noGroup says that the group, or the stream with it, is gone.
func noGroup(err error) bool {
	return hasCode(err, "NOGROUP") || hasCode(err, "UNBLOCKED")
}

// denied says that the ACL forbids the command or the key.
func denied(err error) bool {
	return hasCode(err, "NOPERM") || replied(err) &&
		(strings.Contains(err.Error(), "ACL failure in script") || strings.Contains(err.Error(), "executing the script can't"))
}

// fail says what was being done when err came back, sorts it into the errors of package transport and names the remedy. Errors
// that it does not know are transient.
func fail(doing, key string, err error) error {
	if err == nil {
		return nil
	}
	if key != "" {
		doing = fmt.Sprintf("%s %q", doing, key)
	}
	var cert *tls.CertificateVerificationError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", doing, err)
	case errors.Is(err, redis.ErrClosed):
		return fmt.Errorf("%s: %w: %w", doing, transport.ErrClosed, err)
	case errors.As(err, &cert):
		return fmt.Errorf("%s: %w: %w; give the authority that signed the server's certificate", doing, transport.ErrRejected, err)
	case !replied(err):
		return fmt.Errorf("%s: %w", doing, err)
	case hasCode(err, "WRONGTYPE"):
		return fmt.Errorf("%s: %w: the key holds something else than a stream; rename one of the two: %w",
			doing, transport.ErrRejected, err)
	case denied(err):
		return fmt.Errorf("%s: %w: the ACL forbids it; grant the user %s: %w", doing, transport.ErrRejected, rights(key), err)
	case hasCode(err, "OOM"):
		return fmt.Errorf("%s: redis is out of memory; raise maxmemory or drain the streams: %w", doing, err)
	case strings.Contains(err.Error(), "unknown command"), strings.Contains(err.Error(), "unknown subcommand"):
		return fmt.Errorf("%s: %w: redis %s or newer is needed: %w", doing, transport.ErrUnsupported, needVersion, err)
	case strings.Contains(err.Error(), "invalid bulk length"), strings.Contains(err.Error(), "maximum allowed size"):
		return fmt.Errorf("%s: %w: raise proto-max-bulk-len: %w", doing, transport.ErrTooLarge, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// failStart is fail for the start, when credentials that are refused are the operator's to mend. Later they may be in the
// middle of a rotation, and giving up on a message would lose it.
func failStart(doing, key string, err error) error {
	if hasCode(err, "WRONGPASS") || hasCode(err, "NOAUTH") {
		if key != "" {
			doing = fmt.Sprintf("%s %q", doing, key)
		}
		return fmt.Errorf("%s: %w: check the user name and password: %w", doing, transport.ErrRejected, err)
	}
	return fail(doing, key, err)
}

// rights is what an ACL must grant for a stream.
func rights(key string) string {
	if key == "" {
		return "+ping +info"
	}
	return fmt.Sprintf("+@stream +@sortedset +@hash +@scripting +time on ~%s and ~wasm:{%s}:*", key, hashTag(key))
}
