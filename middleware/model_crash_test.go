package middleware_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// D-09: over every store a process dies at each write of a job's life: before it is sent, after it took place, and when what
// it published was not heard of. Whoever comes next finds the job as it was or as it was to be, with one outcome in the end.
func TestCrashAtEachWrite(t *testing.T) {
	t.Parallel()
	const granted, pure = 2, 3
	distinct := map[endVerb]int{}
	for by, verb := range endings {
		distinct[verb] = by
	}
	for name, open := range modelStores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conns, n := open(t), 0
			for _, what := range []int{granted, pure} {
				lives := [][]move{{{act: deliver, what: what, fault: diesBefore}}, {{act: deliver, what: what, fault: diesAfter}}}
				for _, by := range distinct {
					for _, end := range []move{
						{act: finish, by: by, fault: diesBefore}, {act: finish, by: by, fault: diesAfter},
						{act: finish, by: by, deaf: 1}, {act: finish, by: by, deaf: 2},
					} {
						lives = append(lives, []move{{act: deliver, what: what}, end})
					}
				}
				for _, life := range lives {
					n++
					w, err := newWorld(t.Context(), conns, fmt.Sprint(n))
					if err != nil {
						t.Fatal(err)
					}
					// Another process gets the message at once, and again when a lease is over.
					next := []move{{act: deliver, who: 1, what: what}, {act: pass, by: 10}, {act: deliver, who: 1, what: what}}
					if err := w.run(slices.Concat(life, next)); err != nil {
						t.Errorf("%v\n%s", err, strings.Join(w.told, "\n"))
					}
					w.close()
				}
			}
		})
	}
}
