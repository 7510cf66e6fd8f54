package config

import (
	"errors"
	"fmt"
	"strings"
)

// expand replaces ${NAME} and ${NAME:-default}; $${ stands for ${, and any other $ for itself. The default is taken where the
// variable is unset or empty. Errors name variables and never their values.
func expand(s string, env func(string) (string, bool)) (string, error) {
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			b.WriteString(s)
			return b.String(), nil
		}
		if i > 0 && s[i-1] == '$' {
			b.WriteString(s[:i-1] + "${")
			s = s[i+2:]
			continue
		}
		b.WriteString(s[:i])
		inner, rest, ok := strings.Cut(s[i+2:], "}")
		if !ok {
			return "", errors.New("${ without }; write $${ for a plain ${")
		}
		name, def, hasDef := strings.Cut(inner, ":-")
		if !isVariable(name) || strings.Contains(def, "${") {
			return "", errors.New("a variable is written ${NAME} or ${NAME:-default}; write $${ for a plain ${")
		}
		val, set := "", false
		if env != nil {
			val, set = env(name)
		}
		switch {
		case hasDef && val == "":
			val = def
		case !set && !hasDef:
			return "", fmt.Errorf("environment variable %s is not set; set it, or write ${%s:-default}", name, name)
		}
		b.WriteString(val)
		s = rest
	}
}

// escape turns a value into a text that expands to it.
func escape(s string) string { return strings.ReplaceAll(s, "${", "$${") }

func isVariable(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
