package jetstream

import (
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// large is a body near the server's max_payload.
var large = strings.Repeat("x", 1<<20-formRoom-100)

// fetchAll fetches n messages, and says in how many generations of the pull.
func fetchAll(t *testing.T, s *source, n int) {
	t.Helper()
	gen := s.pull.gen
	for i, d := range fetch(t, s, n, 64) {
		if got := d.Message().Body; len(got) != len(large) || string(got[:10]) != large[:10] {
			t.Errorf("message %d has %d bytes", i, len(got))
		}
		d.Ack()
	}
	if s.pull.gen != gen {
		t.Error("the pull was given up for its silence and begun anew")
	}
}

// What is on its way stays within the bound on bytes, and all of it comes.
func TestLargeMessagesComeAFewAtATime(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{Bytes: 5 << 19})
	for range 8 {
		publish(t, tr, "jobs", large)
	}
	ds, err := s.Fetch(t.Context(), 64)
	if err != nil {
		t.Fatal(err)
	}
	// Two are fetched at most, and two more may have been asked for then.
	if out := consumerInfo(t, tr, "r").NumAckPending; out > 4 {
		t.Errorf("%d messages of a megabyte are out, with a bound of 2.5 MiB", out)
	}
	for _, d := range ds {
		d.Ack()
	}
	fetchAll(t, s, 8-len(ds))
}

// A server says nothing of a request whose max_bytes was used up to the last byte.
func TestMessagesThatUseUpTheBytes(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{Bytes: 1})
	publish(t, tr, "jobs", large)
	var size int64
	if err := s.pull.fetch(t.Context(), 1, func(as []arrived) { size = int64(as[0].msg.Size()) }); err != nil {
		t.Fatal(err)
	}
	s.pull.bytes = 2 * size // their positions have as many digits as the first's
	for range 8 {
		publish(t, tr, "jobs", large)
	}
	fetchAll(t, s, 8)
}

// A message that is larger than what a request may bring comes nevertheless: the server may take smaller ones now than it did.
func TestMessageLargerThanTheBound(t *testing.T) {
	t.Parallel()
	srv := embed(t, EmbedConfig{})
	tr := open(t, dial(t, srv.ConnectConfig()))
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	for range 3 {
		publish(t, tr, "jobs", large)
	}
	srv.opts.MaxPayload = 64 << 10
	if err := srv.restart(srv.running()); err != nil {
		t.Fatal(err)
	}
	await(t, "the server's new limit is known", func() bool { return tr.nc.IsConnected() && tr.nc.MaxPayload() == 64<<10 })
	fetchAll(t, consume(t, tr, transport.SourceConfig{Bytes: 1}), 3)
}
