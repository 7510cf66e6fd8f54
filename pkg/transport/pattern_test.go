package transport_test

import (
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func TestMatchSubject(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern, subject string
		want             bool
	}{
		{"jobs", "jobs", true},
		{"jobs", "Jobs", false},
		{"jobs", "jobs.a", false},
		{"jobs.a", "jobs", false},
		{"jobs.*", "jobs.a", true},
		{"jobs.*", "jobs", false},
		{"jobs.*", "jobs.a.b", false},
		{"jobs.*", "jobs.", false},
		{"*.resize", "jobs.resize", true},
		{"jobs.*.resize", "jobs.eu.resize", true},
		{"jobs.*.resize", "jobs.eu.other", false},
		{"jobs.>", "jobs.a", true},
		{"jobs.>", "jobs.a.b.c", true},
		{"jobs.>", "jobs", false},
		{"jobs.>", "jobs.", false},
		{"jobs.>", "jobs.a..b", false},
		{">", "a.b", true},
		{">", "", false},
		{"*", "a", true},
		{"*", "", false},
		{"a*", "ab", false},
		{"a>", "ab", false},
		{">.a", "b.a", false},
	} {
		if got := transport.MatchSubject(tt.pattern, tt.subject); got != tt.want {
			t.Errorf("MatchSubject(%q, %q) = %v", tt.pattern, tt.subject, got)
		}
	}
}

func TestValidPattern(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		s                string
		pattern, subject bool
	}{
		{"jobs", true, true},
		{"jobs.a-b_c.1", true, true},
		{"a*", true, true},
		{"jobs.*", true, false},
		{"jobs.>", true, false},
		{">", true, false},
		{"jobs.>.a", false, false},
		{"", false, false},
		{".", false, false},
		{"a.", false, false},
		{".a", false, false},
		{"a..b", false, false},
		{"a b", false, false},
		{"a\tb", false, false},
		{"a\r\n", false, false},
		{"a\x7f", false, false},
	} {
		if err := transport.ValidPattern(tt.s); (err == nil) != tt.pattern {
			t.Errorf("ValidPattern(%q) = %v", tt.s, err)
		}
		if err := transport.ValidSubject(tt.s); (err == nil) != tt.subject {
			t.Errorf("ValidSubject(%q) = %v", tt.s, err)
		}
	}
}
