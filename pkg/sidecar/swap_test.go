package sidecar_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// swapping is a line whose module is a file that can be replaced.
type swapping struct {
	*line
	file string
}

// openSwapping starts a line over a guest. head is YAML of the whole configuration, module and route are of the module and the
// route, as YAML flow.
func openSwapping(t *testing.T, wasm []byte, head, module, route string) *swapping {
	t.Helper()
	s := &swapping{&line{t: t, log: &syncBuffer{}, level: slog.LevelDebug}, filepath.Join(t.TempDir(), "m.wasm")}
	s.replace(wasm)
	name := services.UniqueName(t)
	text := fmt.Sprintf("transport: embedded\nembedded: {dir: %q, listen: \"127.0.0.1:%d\"}\nadmin: {listen: off}\ncache: {dir: %q}\n%s\nmodules:\n  m: {source: %q%s}\nroutes:\n  - {name: jobs, from: %s, to: %s_results, dead_letter: %s_dead, module: m%s}\n",
		t.TempDir(), freePort(t), t.TempDir(), head, s.file, module, name, name, name, route)
	var err error
	if s.cfg, err = config.Parse("test.yaml", []byte(text), nil); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	s.stop = s.start(nil)
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("log of the sidecar:\n%.20000s", s.log)
		}
	})
	s.connect(s.cfg)
	return s
}

// replace puts wasm in the file's place at once, and returns its digest.
func (s *swapping) replace(wasm []byte) string {
	s.t.Helper()
	if err := os.WriteFile(s.file+".new", wasm, 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(s.file+".new", s.file); err != nil {
		s.t.Fatal(err)
	}
	sum := sha256.Sum256(wasm)
	return hex.EncodeToString(sum[:])
}

// says waits until the log has all of the words in one line, and returns how many such lines there are.
func (s *swapping) says(words ...string) int {
	s.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		n := 0
		for l := range strings.Lines(s.log.String()) {
			has := true
			for _, w := range words {
				has = has && strings.Contains(l, w)
			}
			if has {
				n++
			}
		}
		if n > 0 {
			return n
		}
	}
	s.t.Fatalf("the log does not say %q", words)
	return 0
}

// ran submits a job and returns the digest of the version that ran it.
func (s *swapping) ran(id string) string {
	s.t.Helper()
	s.submit(id, "x")
	m := s.next(s.results, "the result of "+id)
	if m.Header.Get(transport.HeaderOK) != "true" {
		s.t.Fatalf("%s: %s", id, m.Body)
	}
	return m.Header.Get(transport.HeaderDigest)
}

// version is the guest upper, a little different for each n.
func version(n int) []byte {
	return append(bytes.Clone(guests.Bytes("upper")), fmt.Sprintf("\x00\x07\x01v%05d", n)...)
}

// A steady stream of jobs goes on while the module is replaced 50 times: each has its result, by the version that was current
// or by the one before, none fails, and what is replaced is freed. It runs beside no other test, whose memory it would count.
func TestSwapUnderLoad(t *testing.T) {
	const swaps, warmUp, concurrency = 50, 10, 4
	digests := map[string]int{}
	s := openSwapping(t, version(0), "reload: {interval: 20ms}", "", fmt.Sprint(", concurrency: ", concurrency))
	sum := sha256.Sum256(version(0))
	digests[hex.EncodeToString(sum[:])] = 0

	var submitted, results atomic.Int64
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; !stop.Load(); n++ {
			m := &transport.Message{Subject: s.cfg.Routes[0].From, Body: []byte("x")}
			m.Header.Set(transport.HeaderJobID, fmt.Sprint("job-", n))
			if err := s.client.Publisher().Publish(t.Context(), m); err != nil {
				t.Error(err)
				return
			}
			submitted.Add(1)
			for !stop.Load() && submitted.Load()-results.Load() > 50 { // a stream, not a flood
				time.Sleep(time.Millisecond)
			}
		}
	}()

	ran := map[int]int{} // results by version
	latest := 0
	take := func() {
		m := s.next(s.results, "a result")
		results.Add(1)
		n, known := digests[m.Header.Get(transport.HeaderDigest)]
		if !known || m.Header.Get(transport.HeaderOK) != "true" || string(m.Body) != "X" {
			t.Fatalf("result %q with %v", m.Body, m.Header)
		}
		ran[n]++
		latest = max(latest, n)
	}
	var before usage
	take() // the first version has run
	for n := 1; n <= swaps; n++ {
		digests[s.replace(version(n))] = n
		for latest < n {
			take()
		}
		if n == warmUp {
			before = used()
		}
	}
	stop.Store(true)
	<-done
	for results.Load() < submitted.Load() {
		take()
	}
	s.noMore(s.results, "result", 100*time.Millisecond)
	s.noMore(s.dead, "dead letter", 100*time.Millisecond)
	if len(ran) != swaps+1 {
		t.Errorf("%d of %d versions ran", len(ran), swaps+1)
	}
	if n := strings.Count(s.log.String(), "module swapped"); n != swaps {
		t.Errorf("%d swaps, want %d", n, swaps)
	}
	var after usage
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		after = used()
		if freed := strings.Count(s.log.String(), "version of a module is freed"); freed == swaps && after.images <= 1+concurrency && after.code <= before.code+8 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after %d swaps %+v is in use, and %d versions are freed; after %d swaps %+v was in use", swaps, after,
				strings.Count(s.log.String(), "version of a module is freed"), warmUp, before)
		}
	}
	t.Logf("%d jobs, %d swaps; in use %+v, then %+v", results.Load(), swaps, before, after)
	if grown := after.heap - before.heap; grown > 16<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// usage is what versions that are not freed would take up.
type usage struct {
	heap   int64 // bytes
	images int   // mappings of memory images
	code   int   // mappings of machine code
}

func used() (u usage) {
	for range 3 { // machine code goes with a finalizer
		debug.FreeOSMemory()
	}
	var stats goruntime.MemStats
	goruntime.ReadMemStats(&stats)
	u.heap = int64(stats.HeapAlloc)
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return u // not Linux: the heap has them
	}
	for l := range strings.Lines(string(maps)) {
		f := strings.Fields(l)
		switch {
		case strings.Contains(l, "memfd:wasmsidecar"):
			u.images++
		case f[1] == "r-xp" && len(f) < 6:
			u.code++
		}
	}
	return u
}

// What is no better than the version that runs is refused with one line, and the version goes on.
func TestSwapRefuses(t *testing.T) {
	t.Parallel()
	trapsAtStart := []byte("\x00asm\x01\x00\x00\x00" +
		"\x01\x04\x01\x60\x00\x00" + "\x03\x03\x02\x00\x00" + "\x05\x03\x01\x00\x01" +
		"\x07\x18\x02\x06handle\x00\x00\x0b_initialize\x00\x01" +
		"\x0a\x08\x02\x02\x00\x0b\x03\x00\x00\x0b")
	good := version(0)
	for _, tt := range []struct {
		name string
		wasm []byte
		text string
	}{
		{"not wasm", []byte("hello"), "it is no WebAssembly module"},
		{"cut off", good[:300], "cut off or corrupt"},
		{"nobody can call it", []byte("\x00asm\x01\x00\x00\x00"), "no known abi"},
		{"traps when it is initialized", trapsAtStart, "unreachable"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := openSwapping(t, good, "reload: {interval: 20ms}", "", "")
			first := s.ran("a")
			bad := s.replace(tt.wasm)
			s.says("changed module is refused", "module=m", tt.text)
			if got := s.ran("b"); got != first || got == bad {
				t.Errorf("version %s ran, want %s", got, first)
			}
			next := s.replace(version(1))
			s.says("module swapped", next)
			if got := s.ran("c"); got != next {
				t.Errorf("version %s ran, want %s", got, next)
			}
			if n := s.says("changed module is refused"); n != 1 {
				t.Errorf("it was refused %d times", n)
			}
		})
	}
}

// A module whose digest is pinned stays what it is.
func TestSwapNeverLeavesThePin(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256(version(0))
	pin := hex.EncodeToString(sum[:])
	s := openSwapping(t, version(0), "reload: {interval: 20ms}", fmt.Sprintf(", sha256: %q", pin), "")
	s.replace(version(1))
	s.says("changed module is refused", pin+" is pinned")
	if got := s.ran("a"); got != pin {
		t.Errorf("version %s ran", got)
	}
}

// A file that is away for a while is missed once.
func TestSwapSurvivesAMissingFile(t *testing.T) {
	t.Parallel()
	s := openSwapping(t, version(0), "reload: {interval: 20ms}", "", "")
	if err := os.Remove(s.file); err != nil {
		t.Fatal(err)
	}
	s.says("changed module is refused", "not found")
	first := s.ran("a")
	next := s.replace(version(1))
	s.says("module swapped", next)
	if got := s.ran("b"); got != next || first == next {
		t.Errorf("versions %s and %s ran", first, got)
	}
}

// A job that runs while its module is replaced ends on the version that it began with, and that version is freed then.
func TestSwapLetsRunningJobsEnd(t *testing.T) {
	t.Parallel()
	began, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(began)
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer server.Close()
	addr := strings.TrimPrefix(server.URL, "http://")
	s := openSwapping(t, guests.Bytes("fetch"), "reload: {interval: 20ms}", fmt.Sprintf(", allow: {http: [%q]}, limits: {time: 60s, http_time: 60s}", addr), "")
	sum := sha256.Sum256(guests.Bytes("fetch"))
	old := hex.EncodeToString(sum[:])
	s.submit("slow", "GET "+server.URL+"\n\n")
	select {
	case <-began:
	case <-time.After(patience):
		t.Fatal("the job does not begin")
	}
	next := s.replace(version(1))
	s.says("module swapped", next)
	if got := s.ran("fast"); got != next {
		t.Errorf("version %s ran, want %s", got, next)
	}
	if strings.Contains(s.log.String(), "version of a module is freed") {
		t.Error("a version was freed while a job ran on it")
	}
	close(release)
	m := s.next(s.results, "the slow result")
	if got := m.Header.Get(transport.HeaderDigest); got != old || m.Header.Get(transport.HeaderOK) != "true" {
		t.Errorf("version %s ran, want %s: %s", got, old, m.Body)
	}
	s.says("version of a module is freed", old)
}

// At most three replaced versions run jobs; a change after them waits until one has ended.
func TestSwapWaitsForOldVersions(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	began := make(chan struct{}, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer server.Close()
	addr := strings.TrimPrefix(server.URL, "http://")
	fetch := func(n int) []byte {
		return append(bytes.Clone(guests.Bytes("fetch")), fmt.Sprintf("\x00\x07\x01v%05d", n)...)
	}
	s := openSwapping(t, fetch(0), "reload: {interval: 20ms}", fmt.Sprintf(", allow: {http: [%q]}, limits: {time: 60s, http_time: 60s}", addr), "")
	for n := range 4 {
		s.submit(fmt.Sprint("job-", n), "GET "+server.URL+"\n\n")
		select {
		case <-began:
		case <-time.After(patience):
			t.Fatal("a job does not begin")
		}
		if n < 3 {
			s.says("module swapped", s.replace(fetch(n+1)))
		}
	}
	last := s.replace(fetch(4))
	s.says("module is not looked at while so many of its older versions run jobs")
	if strings.Contains(s.log.String(), last) {
		t.Error("a fifth version is in memory")
	}
	close(release)
	s.says("module swapped", last)
}
