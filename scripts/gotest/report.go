package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxOutput bounds what is kept of one test's output: its end, where the reason stands.
	maxOutput = 256 << 10
	// patience is how long nothing may be printed before the tests that run are named.
	patience = time.Minute
	slowest  = 10
)

// event is a line of go test -json (go doc test2json, go help buildjson).
type event struct {
	Time        time.Time
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

type testID struct{ pkg, test string }

func (id testID) String() string {
	if id.test == "" {
		return id.pkg
	}
	return id.pkg + " " + id.test
}

type timed struct {
	testID
	elapsed time.Duration
}

// report gathers what the tests of all modules did. Only its ticker and read touch it, under mu.
type report struct {
	out io.Writer

	mu       sync.Mutex
	output   map[testID][]byte
	running  map[testID]time.Time
	builds   map[string][]byte // by import path
	counts   map[string]int    // tests ended, by package
	passed   int
	failures []testID
	skips    []string
	times    []timed
	spoke    time.Time
}

func newReport(out io.Writer) *report {
	return &report{
		out: out, output: make(map[testID][]byte), running: make(map[testID]time.Time),
		builds: make(map[string][]byte), counts: make(map[string]int), spoke: time.Now(),
	}
}

func (r *report) failed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failures)
}

// fail counts a failure that is no test's own.
func (r *report) fail(pkg, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.printFailure(testID{pkg: pkg}, []byte(why+"\n"))
}

// read takes the events of one go test until their end.
func (r *report) read(in io.Reader) error {
	done := make(chan struct{})
	var ticker sync.WaitGroup
	ticker.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.nameRunning(time.Now())
			case <-done:
				return
			}
		}
	})
	defer ticker.Wait()
	defer close(done)

	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) line(line []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var e event
	if err := json.Unmarshal(line, &e); err != nil || e.Action == "" {
		// Not an event: a test binary wrote past the tool. It is shown as it is.
		r.printf("%s", line)
		return
	}
	id := testID{e.Package, e.Test}
	elapsed := time.Duration(e.Elapsed * float64(time.Second))
	switch e.Action {
	case "build-output":
		r.builds[e.ImportPath] = append(r.builds[e.ImportPath], e.Output...)
	case "run":
		r.running[id] = e.Time
	case "output":
		r.output[id] = keepEnd(append(r.output[id], e.Output...))
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e, elapsed)
			return
		}
		delete(r.running, id)
		r.counts[e.Package]++
		r.times = append(r.times, timed{id, elapsed})
		switch e.Action {
		case "pass":
			r.passed++
		case "fail":
			r.printFailure(id, r.output[id])
		case "skip":
			r.skips = append(r.skips, id.String()+": "+reason(r.output[id]))
		}
		delete(r.output, id)
	}
}

// endPackage closes a package. One that fails without a failed test did not build, or its binary died: the tests that were
// running then are the failures.
func (r *report) endPackage(e event, elapsed time.Duration) {
	pkg := testID{pkg: e.Package}
	defer func() {
		for id := range r.output {
			if id.pkg == e.Package {
				delete(r.output, id)
			}
		}
	}()
	switch e.Action {
	case "skip":
		return // no test files
	case "pass":
		if r.counts[e.Package] > 0 {
			r.printf("ok    %s  %d tests, %.1f s\n", e.Package, r.counts[e.Package], elapsed.Seconds())
		}
		return
	}
	var hung []testID
	for id := range r.running {
		if id.pkg == e.Package {
			hung = append(hung, id)
			delete(r.running, id)
		}
	}
	slices.SortFunc(hung, func(a, b testID) int { return strings.Compare(a.test, b.test) })
	for _, id := range hung {
		r.counts[e.Package]++
		r.printFailure(id, append(r.output[id], "    did not end\n"...))
	}
	own := r.output[pkg]
	if e.FailedBuild != "" {
		own = append(r.builds[e.FailedBuild], own...)
	}
	tests := slices.ContainsFunc(r.failures, func(id testID) bool { return id.pkg == e.Package })
	if !tests {
		r.printFailure(pkg, own)
	} else if len(hung) > 0 {
		r.printf("%s", indent(own)) // the panic and its goroutines
	}
	r.printf("FAIL  %s  %d tests, %.1f s\n", e.Package, r.counts[e.Package], elapsed.Seconds())
}

func (r *report) printFailure(id testID, output []byte) {
	r.failures = append(r.failures, id)
	r.printf("\n--- FAIL: %s\n%s\n", id, indent(output))
}

func (r *report) printf(format string, args ...any) {
	fmt.Fprintf(r.out, format, args...)
	r.spoke = time.Now()
}

// nameRunning breaks a long silence, so that nobody takes a slow test for a hung one or the other way round.
func (r *report) nameRunning(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.spoke) < patience || len(r.running) == 0 {
		return
	}
	var oldest testID
	for id, began := range r.running {
		if oldest == (testID{}) || began.Before(r.running[oldest]) {
			oldest = id
		}
	}
	r.printf("...   %d passed so far; %d running, the longest for %.0f s: %s\n",
		r.passed, len(r.running), now.Sub(r.running[oldest]).Seconds(), oldest)
}

// finish prints the summary and reports whether the run is good. kafka is the kind of broker behind the Kafka tests.
func (r *report) finish(strict bool, kafka string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortFunc(r.times, func(a, b timed) int { return cmp.Compare(b.elapsed, a.elapsed) })
	r.printf("\nslowest tests:\n")
	for _, t := range r.times[:min(slowest, len(r.times))] {
		r.printf("  %6.2f s  %s\n", t.elapsed.Seconds(), t.testID)
	}
	if len(r.skips) > 0 {
		r.printf("\nskipped tests:\n")
		for _, s := range r.skips {
			r.printf("  %s\n", s)
		}
	}
	if len(r.failures) > 0 {
		r.printf("\nfailed tests:\n")
		for _, id := range r.failures {
			r.printf("  %s\n", id)
		}
	}
	ok := len(r.failures) == 0
	if r.passed == 0 {
		ok = false
		r.printf("\nno test passed; that is taken for a failure\n")
	}
	if strict && len(r.skips) > 0 {
		ok = false
		r.printf("\n%d tests were skipped, and -strict allows none\n", len(r.skips))
	}
	if strict && kafka != "kafka" {
		ok = false
		r.printf("\nthe Kafka tests ran against %s, and -strict wants a real broker (WASMSIDECAR_TEST_KAFKA_KIND=kafka)\n", cmp.Or(kafka, "nothing that is known"))
	}
	last := fmt.Sprintf("%d passed, %d failed", r.passed, len(r.failures))
	if len(r.skips) > 0 {
		last += fmt.Sprintf(", %d skipped", len(r.skips))
	}
	if kafka == "kfake" {
		last += " (the Kafka tests ran against kfake, because no Kafka could be had)"
	}
	r.printf("\n%s\n", last)
	return ok
}

// reason is what a test said when it skipped.
func reason(output []byte) string {
	for line := range strings.Lines(string(output)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			return line
		}
	}
	return "no reason given"
}

func keepEnd(b []byte) []byte {
	if len(b) <= maxOutput {
		return b
	}
	return append(b[:0], b[len(b)-maxOutput/2:]...)
}

func indent(b []byte) []byte {
	b = bytes.TrimRight(b, "\n")
	if len(b) == 0 {
		return nil
	}
	return append(append([]byte("    "), bytes.ReplaceAll(b, []byte("\n"), []byte("\n    "))...), '\n')
}
