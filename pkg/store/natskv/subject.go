package natskv

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// How it lies in the stream. Every key and every member is a subject of its own, of which the stream keeps the last message:
//
//	prefix.k.partition.part.part    a key, split at its slashes; the body is the value
//	prefix.z.partition.set.member   a member of an ordered set; the body is the score in decimal
//	prefix.g.n                      carries a condition on a key that its transaction does not write
//	prefix.f.store.n                a fence, by which a store knows that it has seen everything before it
//
// A name that is no plain token is written as "=" and its base64. What was deleted is a message without a body and with a
// KV-Operation header, which goes away by itself a minute later.

// token writes s as one token of a subject, reversibly.
func token(s string) string {
	if plain(s) {
		return s
	}
	return "=" + base64.RawURLEncoding.EncodeToString([]byte(s))
}

func plain(s string) bool {
	if s == "" || s[0] == '=' {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ' || c >= 0x7f || c == '.' || c == '*' || c == '>':
			return false
		}
	}
	return true
}

func untoken(s string) (string, error) {
	enc, ok := strings.CutPrefix(s, "=")
	if !ok {
		return s, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(enc)
	if err != nil {
		return "", fmt.Errorf("token %q: %w", s, err)
	}
	return string(b), nil
}

// keySubject returns the subject of a key.
func (s *Store) keySubject(key string) string {
	var b strings.Builder
	b.Grow(len(s.keys) + len(key) + 8)
	b.WriteString(s.keys)
	writeTokens(&b, key)
	return b.String()
}

// writeTokens writes what stands between slashes as tokens.
func writeTokens(b *strings.Builder, name string) {
	for {
		part, rest, more := strings.Cut(name, "/")
		b.WriteString(token(part))
		if !more {
			return
		}
		b.WriteByte('.')
		name = rest
	}
}

// subjectKey is the reverse of keySubject.
func (s *Store) subjectKey(subject string) (string, error) {
	rest, ok := strings.CutPrefix(subject, s.keys)
	if !ok {
		return "", fmt.Errorf("subject %q is no key", subject)
	}
	if !strings.Contains(rest, "=") {
		return strings.ReplaceAll(rest, ".", "/"), nil
	}
	parts := strings.Split(rest, ".")
	for i, p := range parts {
		var err error
		if parts[i], err = untoken(p); err != nil {
			return "", err
		}
	}
	return strings.Join(parts, "/"), nil
}

// isGuard says whether a subject only carries conditions.
func (s *Store) isGuard(subject string) bool { return strings.HasPrefix(subject, s.guards) }

// prefixFilter returns the narrowest filter that has all keys that begin with prefix.
func (s *Store) prefixFilter(prefix string) string {
	var b strings.Builder
	b.WriteString(s.keys)
	writeTokens(&b, prefix[:strings.LastIndexByte(prefix, '/')])
	b.WriteString(".>")
	return b.String()
}

// memberSubject returns the subject of a member of a set.
func (s *Store) memberSubject(set, member string) string {
	part, name, _ := strings.Cut(set, "/")
	return s.sets + token(part) + "." + token(name) + "." + token(member)
}

// subjectMember is the reverse of memberSubject.
func (s *Store) subjectMember(subject string) (set, member string, err error) {
	parts := strings.Split(strings.TrimPrefix(subject, s.sets), ".")
	if len(parts) != 3 {
		return "", "", fmt.Errorf("subject %q is no member of a set", subject)
	}
	for i, p := range parts {
		if parts[i], err = untoken(p); err != nil {
			return "", "", err
		}
	}
	return parts[0] + "/" + parts[1], parts[2], nil
}
