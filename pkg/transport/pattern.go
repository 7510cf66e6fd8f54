package transport

import (
	"fmt"
	"strings"
)

// MatchSubject says whether subject matches pattern by the rules of NATS: tokens are separated by dots, * stands for one token
// and > at the end for one or more. A pattern or subject that is not valid matches nothing but itself.
func MatchSubject(pattern, subject string) bool {
	if pattern == subject {
		return true
	}
	for {
		p, prest, pmore := strings.Cut(pattern, ".")
		s, srest, smore := strings.Cut(subject, ".")
		switch {
		case p == ">" && !pmore:
			return validRest(s, srest, smore)
		case s == "" || p != "*" && p != s:
			return false
		case pmore != smore:
			return false
		case !pmore:
			return true
		}
		pattern, subject = prest, srest
	}
}

// validRest says that what > stands for has no empty token.
func validRest(s, rest string, more bool) bool {
	for {
		if s == "" {
			return false
		}
		if !more {
			return true
		}
		s, rest, more = strings.Cut(rest, ".")
	}
}

// ValidPattern reports what is wrong with a pattern: an empty token, white space, or a > that is not the last token.
func ValidPattern(p string) error {
	return checkSubject(p, true)
}

// ValidSubject reports what is wrong with a subject that is published to: as ValidPattern, and wildcards are not allowed.
func ValidSubject(s string) error {
	return checkSubject(s, false)
}

func checkSubject(s string, wildcards bool) error {
	if s == "" {
		return fmt.Errorf("subject is empty")
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }); i >= 0 {
		return fmt.Errorf("subject %q: white space or control character at byte %d", s, i)
	}
	for rest, more := s, true; more; {
		var token string
		token, rest, more = strings.Cut(rest, ".")
		switch {
		case token == "":
			return fmt.Errorf("subject %q: empty token; dots stand between tokens", s)
		case !wildcards && (token == "*" || token == ">"):
			return fmt.Errorf("subject %q: wildcard where a plain subject is needed", s)
		case token == ">" && more:
			return fmt.Errorf("subject %q: > must be the last token", s)
		}
	}
	return nil
}

// ReplyAllowed says whether a producer may have results sent to subject: it is a plain subject and one of the patterns matches.
func ReplyAllowed(patterns []string, subject string) bool {
	for _, p := range patterns {
		if MatchSubject(p, subject) {
			return ValidSubject(subject) == nil
		}
	}
	return false
}
