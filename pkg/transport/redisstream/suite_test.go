package redisstream

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/rediskv"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/transporttest"
)

// D-23: the suite of all transports.
func TestSuite(t *testing.T) {
	addr := services.Redis(t)
	transporttest.Run(t, harness(client(t, addr), func(t testing.TB) (transport.Transport, func(time.Duration)) {
		p := transporttest.NewProxy(t, addr)
		return openBare(t, client(t, p.Addr())), p.Cut
	}))
}

// harness runs the suite on what c is connected to.
func harness(c redis.UniversalClient, cuttable func(testing.TB) (transport.Transport, func(time.Duration))) transporttest.Harness {
	return transporttest.Harness{
		Open:       func(t testing.TB) transport.Transport { return openBare(t, c) },
		NewSubject: services.UniqueName,
		RawPublish: func(t testing.TB, subject string, body []byte) { xadd(t, c, subject, "data", string(body)) },
		DropGroup: func(t testing.TB, subject string) {
			t.Helper()
			if err := c.XGroupDestroy(t.Context(), subject, "workers").Err(); err != nil {
				t.Fatal(err)
			}
		},
		RecreateSubject: func(t testing.TB, subject string) {
			t.Helper()
			if err := c.Del(t.Context(), subject).Err(); err != nil {
				t.Fatal(err)
			}
			if err := c.XGroupCreateMkStream(t.Context(), subject, "other", "0").Err(); err != nil {
				t.Fatal(err)
			}
		},
		Trim: func(t testing.TB, subject string, keep int) {
			t.Helper()
			if err := c.XTrimMaxLen(t.Context(), subject, int64(keep)).Err(); err != nil {
				t.Fatal(err)
			}
		},
		OpenCuttable: cuttable,
		Beside: func(t testing.TB) store.Store {
			t.Helper()
			st, err := rediskv.Open(t.Context(), c, rediskv.Config{Prefix: services.UniqueName(t) + ":"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = st.Close() })
			return st
		},
		Spoil: func(t testing.TB, subject string) {
			t.Helper()
			if err := c.Set(t.Context(), subject, "no stream", 0).Err(); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// openBare makes a transport that the suite closes.
func openBare(t testing.TB, c redis.UniversalClient) transport.Transport {
	t.Helper()
	tr, err := Open(t.Context(), Config{Client: c, Group: "workers", CreateStreams: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after it was closed
		for stream := range tr.jobs {
			if err := tr.look(context.Background(), stream, false); err != nil && !strings.Contains(err.Error(), "WRONGTYPE") {
				t.Error(err)
			}
		}
		if n := tr.Losses().Gaps; n != 0 && !strings.Contains(t.Name(), "Trimmed") {
			t.Errorf("%d entries are counted as lost; none was", n)
		}
	})
	return tr
}
