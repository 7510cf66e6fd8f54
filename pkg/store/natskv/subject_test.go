package natskv

import (
	"strings"
	"testing"
)

// Names become subjects and come back, and different names become different subjects.
func FuzzSubjects(f *testing.F) {
	for _, s := range []string{"p/a", "p/a/b", "p//", "/", "p/=", "p/a.b", "p/ *>\x00", "p/\xff/=YQ", "p/日本語"} {
		f.Add(s, s+"x")
	}
	s := &Store{keys: "w.k.", sets: "w.z."}
	f.Fuzz(func(t *testing.T, a, b string) {
		subjects := map[string]string{}
		for _, name := range []string{a, b} {
			part, rest, ok := strings.Cut(name, "/")
			if !ok || rest == "" {
				return
			}
			subject := s.keySubject(name)
			if strings.ContainsAny(subject, " \t\r\n\x00*>") || strings.Contains(subject, "..") || strings.HasSuffix(subject, ".") {
				t.Fatalf("key %q has the subject %q", name, subject)
			}
			if back, err := s.subjectKey(subject); err != nil || back != name {
				t.Fatalf("key %q comes back as %q, %v", name, back, err)
			}
			if other, ok := subjects[subject]; ok && other != name {
				t.Fatalf("keys %q and %q share the subject %q", name, other, subject)
			}
			subjects[subject] = name
			if filter := strings.TrimSuffix(s.prefixFilter(part+"/"), ">"); !strings.HasPrefix(subject, filter) {
				t.Fatalf("key %q is not below %q", name, filter)
			}
			if rest != "" {
				set, member, err := s.subjectMember(s.memberSubject(name, rest))
				if err != nil || set != name || member != rest {
					t.Fatalf("member %q of %q comes back as %q of %q, %v", rest, name, member, set, err)
				}
			}
		}
	})
}

func TestAtLeast(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{
		"2.12.0": true, "2.15.2": true, "3.0.0-beta": true, "2.11.9": false, "1.99.0": false, "": false, "2": false, "x.y.z": false,
	} {
		if got := atLeast(version, 2, 12); got != want {
			t.Errorf("atLeast(%q) = %v, want %v", version, got, want)
		}
	}
}
