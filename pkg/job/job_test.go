package job_test

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

func TestCleanText(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", job.MaxErrorText)
	for name, c := range map[string]struct{ in, want string }{
		"empty":       {"", ""},
		"plain":       {"größer als 1 MiB", "größer als 1 MiB"},
		"line breaks": {"a\r\nX-Evil: 1\x00\x7f", "a  X-Evil: 1  "},
		"no UTF-8":    {"a\xff\xfeb", "a\uFFFDb"},
		"long":        {long, strings.Repeat("é", (job.MaxErrorText-len("…"))/2) + "…"},
		"long, dirty": {"\n" + strings.Repeat("x", 1<<20), " " + strings.Repeat("x", job.MaxErrorText-len("…")-1) + "…"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := job.CleanText(c.in)
			if got != c.want {
				t.Errorf("got %.80q… of %d bytes, want %.80q… of %d", got, len(got), c.want, len(c.want))
			}
			if !utf8.ValidString(got) || len(got) > job.MaxErrorText || job.CleanText(got) != got {
				t.Errorf("%.80q is not clean", got)
			}
		})
	}
}

// What becomes of a job follows from its kind alone, and a kind from a newer version is a fault, never a success.
func TestFates(t *testing.T) {
	t.Parallel()
	for _, k := range job.Kinds() {
		f := k.Fate()
		switch {
		case f.Title == "" || f.Status < 200 || f.Status > 599:
			t.Errorf("%s: %+v has no title or no HTTP status", k, f)
		case (k == job.KindOK) != (f.Status == 200):
			t.Errorf("%s has HTTP status %d", k, f.Status)
		case f.DeadLetter && !f.Counts:
			t.Errorf("%s leaves a dead letter without an attempt", k)
		}
	}
	if got, want := job.Kind("made-up").Fate(), job.KindInternal.Fate(); got != want {
		t.Errorf("an unknown kind has fate %+v, want %+v", got, want)
	}
	if o := (&job.Outcome{Kind: "made-up"}); o.OK() {
		t.Error("an unknown kind is a success")
	}
	if k := job.KindOf(fmt.Errorf("wrapped: %w", job.Errorf(job.KindLimit, "too much"))); k != job.KindLimit {
		t.Errorf("wrapped, the kind is %s", k)
	}
}

func TestHeader(t *testing.T) {
	t.Parallel()
	h := job.Header{{Name: "A", Value: "1"}, {Name: "b", Value: "2"}, {Name: "a", Value: "3"}}
	c := h.Clone(1)
	c.Set("a", "9")
	c.Set("new", "x")
	if got := fmt.Sprint(c); got != "[{a 9} {b 2} {new x}]" {
		t.Errorf("set: %s", got)
	}
	c.Del("A")
	if got := fmt.Sprint(c); got != "[{b 2} {new x}]" {
		t.Errorf("deleted: %s", got)
	}
	if got := fmt.Sprint(h); got != "[{A 1} {b 2} {a 3}]" || h.Size() != 6 {
		t.Errorf("the original is %s of %d bytes", got, h.Size())
	}
	if v, ok := h.Lookup("c"); ok || v != "" {
		t.Errorf("looked up %q", v)
	}
}
