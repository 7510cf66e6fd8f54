package config

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"
)

// Secret is a value that is never printed. Reveal gives it out.
type Secret string

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String returns ***, or nothing for an empty secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// Format prints String under every verb, so that no format shows the secret.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// MarshalText encodes String.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue logs String.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Size is a number of bytes, written as 64MiB or 1MB.
type Size int64

// sizeUnits goes from the largest to the smallest.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"KB", 1e3}, {"B", 1},
}

// ParseSize reads a whole number with one of the units B, KB, MB, GB (powers of 1000), KiB, MiB, GiB (powers of 1024), or
// none for bytes.
func ParseSize(s string) (Size, error) {
	num, unit := s, int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(s, u.name); ok {
			num, unit = strings.TrimSpace(n), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is not a size; write a whole number with a unit, such as 64KiB, 1MiB or 10MB", s)
	}
	return Size(n * unit), nil
}

// String writes the size with the largest unit that leaves it whole.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if n := int64(s); n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// Count is a number of things, written as 100M or 5G.
type Count int64

// countUnits goes from the largest to the smallest.
var countUnits = []struct {
	name string
	n    int64
}{{"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"K", 1e3}}

// ParseCount reads a whole number with one of the units K, M, G and T (powers of 1000), or none.
func ParseCount(s string) (Count, error) {
	num, unit := s, int64(1)
	for _, u := range countUnits {
		if n, ok := strings.CutSuffix(s, u.name); ok {
			num, unit = strings.TrimSpace(n), u.n
			break
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is not a count; write a whole number, such as 500, 100M or 5G", s)
	}
	return Count(n * unit), nil
}

// String writes the count with the largest unit that leaves it whole.
func (c Count) String() string {
	for _, u := range countUnits {
		if n := int64(c); n != 0 && n%u.n == 0 {
			return strconv.FormatInt(n/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(c), 10)
}

// parseDuration reads a Go duration; a bare number is refused because its unit is anyone's guess.
func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || (s != "0" && strings.TrimLeft(s, "+-0123456789.") == "") {
		return 0, fmt.Errorf("%q is not a duration; write a number with a unit, such as 500ms, 30s, 5m or 24h", s)
	}
	return d, nil
}

// formatDuration writes a duration without the zero parts that Duration.String leaves in.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
