package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Mistake is one thing that is wrong with a configuration.
type Mistake struct {
	File      string // empty for a configuration made in code
	Line, Col int    // from 1; 0 where not known
	Text      string
}

// String returns file:line:column: text, as far as they are known.
func (m Mistake) String() string {
	switch {
	case m.File == "":
		return m.Text
	case m.Line == 0:
		return m.File + ": " + m.Text
	}
	return fmt.Sprintf("%s:%d:%d: %s", m.File, m.Line, m.Col, m.Text)
}

// Error is everything that is wrong with a configuration, in the order of the file.
type Error struct{ Mistakes []Mistake }

// Error returns one mistake per line.
func (e *Error) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = m.String()
	}
	return strings.Join(lines, "\n")
}

// place is where something stands in the file.
type place struct{ line, col int }

// report collects mistakes and knows where each path of the configuration was given. A path is written kafka.brokers or
// routes[0].from; the root is the empty one.
type report struct {
	file     string
	places   map[string]place
	wrong    map[string]bool // paths that have a mistake: what follows from them is not reported
	mistakes []Mistake
}

func newReport(file string) *report {
	return &report{file: file, places: map[string]place{}, wrong: map[string]bool{}}
}

// given says whether the file holds path.
func (r *report) given(path string) bool {
	_, ok := r.places[path]
	return ok
}

// failf reports a mistake about path, at its place or at that of what holds it. One path is reported once.
func (r *report) failf(path, format string, args ...any) {
	if r.wrong[path] {
		return
	}
	r.wrong[path] = true
	at := path
	for at != "" && !r.given(at) {
		at = at[:max(0, strings.LastIndexAny(at, ".["))]
	}
	text := fmt.Sprintf(format, args...)
	if path != "" {
		text = path + ": " + text
	}
	r.at(r.places[at], text)
}

// maxMistakes is how many mistakes are told apart; a file with more of them is none of ours.
const maxMistakes = 100

// maxText is the longest text of a mistake in bytes; what it quotes may be as long as the file.
const maxText = 400

// at reports a mistake at a place of its own.
func (r *report) at(p place, text string) {
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	r.mistakes = append(r.mistakes, Mistake{File: r.file, Line: p.line, Col: p.col, Text: text})
}

// err returns the mistakes as an *Error, or nil.
func (r *report) err() error {
	if len(r.mistakes) == 0 {
		return nil
	}
	slices.SortStableFunc(r.mistakes, func(a, b Mistake) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	all := slices.Compact(r.mistakes)
	if more := len(all) - maxMistakes; more > 0 {
		all = append(all[:maxMistakes], Mistake{File: r.file, Text: fmt.Sprintf("and %d more mistakes", more)})
	}
	return &Error{Mistakes: all}
}

// suggest is the function below for as long as it is worth the work.
func (r *report) suggest(word string, candidates []string, intro string) string {
	if len(r.mistakes) > maxMistakes {
		return ""
	}
	return suggest(word, candidates, intro)
}

// suggest returns the candidate nearest to word as "; did you mean …?", or, where none is near, all of them after intro.
func suggest(word string, candidates []string, intro string) string {
	best, dist := "", len(word)/3+2
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), strings.ToLower(c)); c != "" && d < dist {
			best, dist = c, d
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; " + intro + strings.Join(slices.DeleteFunc(slices.Clone(candidates), func(s string) bool { return s == "" }), ", ")
}

// distance counts the insertions, deletions, replacements and swaps of neighbours that turn a into b.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replace := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			rows[i][j] = min(replace, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
