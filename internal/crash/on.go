//go:build crash && unix

package crash

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// told is where to die, and how many times to pass before, once SIGUSR1 has come.
type told struct {
	point Point
	left  atomic.Int64
	armed atomic.Bool
}

var order = sync.OnceValue(func() *told {
	point, times, _ := strings.Cut(os.Getenv(Env), ":")
	n, err := strconv.ParseInt(times, 10, 64)
	if point != "" && err != nil {
		panic(fmt.Sprintf("%s=%q: want POINT:TIMES", Env, os.Getenv(Env)))
	}
	t := &told{point: Point(point)}
	t.left.Store(n)
	t.armed.Store(t.point == DuringDrain) // which is not passed before
	if point != "" {
		arm := make(chan os.Signal, 1)
		signal.Notify(arm, syscall.SIGUSR1)
		go func() {
			<-arm
			t.armed.Store(true)
		}()
	}
	return t
})

// At kills the process if it was told to die here and has passed often enough.
func At(p Point) {
	t := order()
	if t.point != p || !t.armed.Load() || t.left.Add(-1) >= 0 {
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
