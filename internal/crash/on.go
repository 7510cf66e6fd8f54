//go:build crash

package crash

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// told is where to die, and how many times to pass before.
type told struct {
	point Point
	left  atomic.Int64
}

var order = sync.OnceValue(func() *told {
	point, times, _ := strings.Cut(os.Getenv(Env), ":")
	n, err := strconv.ParseInt(times, 10, 64)
	if point != "" && err != nil {
		panic(fmt.Sprintf("%s=%q: want POINT:TIMES", Env, os.Getenv(Env)))
	}
	t := &told{point: Point(point)}
	t.left.Store(n)
	return t
})

// At kills the process if it was told to die here and has passed often enough.
func At(p Point) {
	t := order()
	if t.point != p || t.left.Add(-1) >= 0 {
		return
	}
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(err)
	}
	select {} // dead by now
}
