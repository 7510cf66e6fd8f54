package runtime_test

import (
	"errors"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// Try says what would keep every job from running, and leaves an instance for the first where that is possible.
func TestTry(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	const two, initialize = "\x03\x02\x00\x00", "\x07\x02\x06handle\x00\x00\x0b_initialize\x00\x01"
	for _, tt := range []struct {
		name string
		body string // of _initialize
		kind job.Kind
	}{
		{"well", "\x02\x00\x0b", ""},
		{"traps", "\x03\x00\x00\x0b", job.KindTrap},
		{"never ends", "\x07\x00\x03\x40\x0c\x00\x0b\x0b", job.KindTimeout},
	} {
		m := loadBytes(t, e, tt.name, moduleOf(typeVoid, two, "\x05\x01\x00\x01", initialize, "\x0a\x02\x02\x00\x0b"+tt.body),
			func(c *runtime.ModuleConfig) { c.Limits.Time = 50 * time.Millisecond })
		err := m.Try(t.Context())
		if tt.kind != "" {
			wantKind(t, err, tt.kind, tt.name)
			continue
		}
		if idle := runtime.Idle(m); err != nil || len(idle) != 1 {
			t.Errorf("%v; %d instances are kept", err, len(idle))
		}
		if _, err := m.Run(t.Context(), newJob("")); err != nil {
			t.Error(err)
		}
		end(t, m)
		if err := m.Try(t.Context()); !errors.Is(err, runtime.ErrClosed) || job.KindOf(err) != job.KindUnavailable {
			t.Errorf("closed: %v", err)
		}
	}
	for _, guest := range []string{"upper", "upper-c", "echo-drasm", "stains-table"} {
		m := load(t, e, guest)
		if err := m.Try(t.Context()); err != nil {
			t.Errorf("%s: %v", guest, err)
		}
	}
}
