package runtime_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// record is one instruction to the guest probe: a function's number and its parameters.
func record(words ...uint32) string {
	b := make([]byte, 36)
	for i, w := range words {
		binary.LittleEndian.PutUint32(b[4*i:], w)
	}
	return string(b)
}

// FuzzPull calls every host function with every kind of pointer and length. Whatever comes of it, it is the guest's own fault,
// and the next job runs. D-11.
func FuzzPull(f *testing.F) {
	edges := []uint32{0, 1, 100, 1<<16 - 1, 1 << 16, 1 << 17, 1<<31 - 1, 1 << 31, 1<<32 - 1}
	for fn := range uint32(21) {
		for _, e := range edges {
			f.Add([]byte(record(fn, e, e, e, e, e, e, e, e)))
			f.Add([]byte(record(fn, 0, e, 0, e, 0, e, 0, e)))
			f.Add([]byte(record(fn, e, 1, e, 1, e, 1, e, 1)))
			f.Add([]byte(record(fn, 2, e, 16, e)))
		}
	}
	e, _ := open(f)
	probe := load(f, e, "probe", func(c *runtime.ModuleConfig) { c.Limits.Time = 200 * time.Millisecond })
	echo := load(f, e, "echo")
	f.Fuzz(func(t *testing.T, in []byte) {
		_, err := probe.Run(t.Context(), newJob(string(in)))
		checkGuestsFault(t, err)
		if r, err := echo.Run(t.Context(), newJob("still here")); err != nil || string(r.Body) != "still here" {
			t.Fatalf("the next job: %v", err)
		}
	})
}

// checkGuestsFault checks that an error blames the guest.
func checkGuestsFault(t *testing.T, err error) {
	t.Helper()
	switch k := job.KindOf(err); k {
	case job.KindOK, job.KindTrap, job.KindFailed, job.KindRetry, job.KindTimeout, job.KindLimit, job.KindDenied, job.KindUpstream:
	default:
		t.Fatalf("kind %q: %v", k, err)
	}
}

// wild returns the guest probe-drasm, told what to do.
func wild(mode, alloc, logAt, logLen, requestAt, requestLen uint32, handle uint64) []byte {
	b := guests.Bytes("probe-drasm")
	for i := range b {
		if string(b[i:min(i+8, len(b))]) == "WILDWILD" {
			words := b[i+8:]
			for k, w := range []uint32{mode, alloc, logAt, logLen, requestAt, requestLen} {
				binary.LittleEndian.PutUint32(words[4*k:], w)
			}
			binary.LittleEndian.PutUint64(words[24:], handle)
			return b
		}
	}
	panic("probe-drasm has no WILDWILD")
}

// FuzzDRASM does the same to the DRASM ABI, where the host follows the guest's pointers too. D-11.
func FuzzDRASM(f *testing.F) {
	edges := []uint32{0, 1, 1024, 1 << 16, 1<<31 - 1, 1 << 31, 1<<32 - 1}
	for _, e := range edges {
		for _, g := range edges {
			f.Add(uint32(31), e, e, g, e, g, uint64(g)<<32|uint64(e))
			f.Add(uint32(8), e, e, g, e, g, uint64(g)<<32|uint64(e))
		}
	}
	e, _ := open(f)
	echo := load(f, e, "echo-drasm")
	f.Fuzz(func(t *testing.T, mode, alloc, logAt, logLen, requestAt, requestLen uint32, handle uint64) {
		m, err := e.Load(t.Context(), runtime.ModuleConfig{Name: "wild", Wasm: wild(mode, alloc, logAt, logLen, requestAt, requestLen, handle)})
		if err != nil {
			t.Fatal(err)
		}
		defer end(t, m)
		_, err = m.Run(t.Context(), newJob("hello"))
		checkGuestsFault(t, err)
		if r, err := echo.Run(t.Context(), newJob("still here")); err != nil || string(r.Body) != "still here" {
			t.Fatalf("the next job: %v", err)
		}
	})
}

// D-11: each rude thing that a DRASM guest can do, by name.
func TestRudeDRASM(t *testing.T) {
	t.Parallel()
	const most = 1<<32 - 1
	tests := []struct {
		name string
		wasm []byte
		kind job.Kind
		text string
	}{
		{"polite", wild(0, 0, 0, 0, 0, 0, 0), job.KindOK, ""},
		{"alloc answers out of bounds", wild(1, most, 0, 0, 0, 0, 0), job.KindTrap, "returned 4294967295, which is out of bounds"},
		{"log with negative length", wild(2, 0, 8, 1<<31, 0, 0, 0), job.KindTrap, "pointer to log text out of bounds"},
		{"request with negative length", wild(4, 0, 0, 0, 8, most, 0), job.KindTrap, "pointer to request out of bounds"},
		{"reply with negative length", wild(8, 0, 0, 0, 0, 0, 1<<63|8), job.KindLimit, "over the limit"},
		{"reply out of bounds", wild(8, 0, 0, 0, 0, 0, 100<<32|(most-50)), job.KindTrap, "reply out of bounds"},
		{"reply of nothing", wild(8, 0, 0, 0, 0, 0, 0), job.KindTrap, "reply is no envelope"},
		{"reply that is no JSON", wild(8, 0, 0, 0, 0, 0, 100<<32), job.KindTrap, "reply is no envelope"},
		{"alloc that calls the host that called it", wild(16|4, 0, 0, 0, 8, 8, 0), job.KindTrap, "while it allocated"},
	}
	e, _ := open(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := loadBytes(t, e, "wild", tt.wasm)
			_, err := m.Run(t.Context(), newJob("hello"))
			wantKind(t, err, tt.kind, tt.text)
		})
	}
}
