//go:build unix

package ledger

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// counter rolls the dice of jobs that may ask for them, and notes who asked.
type counter struct {
	server *httptest.Server
	// answer decides what becomes of the nth execution of a job, counted from 1, with an HTTP status; nil: it always goes well.
	answer func(ctx context.Context, id string, life, n int) int

	mu   sync.Mutex
	runs map[string][]execution // by job, in order of time
}

type execution struct {
	life int
	at   time.Time
}

func newCounter(t testing.TB) *counter {
	c := &counter{runs: map[string][]execution{}}
	c.server = httptest.NewServer(c)
	t.Cleanup(c.server.Close)
	return c
}

func (c *counter) addr() string { return strings.TrimPrefix(c.server.URL, "http://") }

// url is where the guests of one life of a replica ask.
func (c *counter) url(life int) string { return c.server.URL + "/" + strconv.Itoa(life) }

// ServeHTTP answers one execution.
func (c *counter) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	at := time.Now()
	id, err := io.ReadAll(io.LimitReader(req.Body, 1024))
	life, lerr := strconv.Atoi(strings.TrimPrefix(req.URL.Path, "/"))
	if err != nil || lerr != nil {
		http.Error(w, "not a job", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	c.runs[string(id)] = append(c.runs[string(id)], execution{life, at})
	n := len(c.runs[string(id)])
	c.mu.Unlock()
	if c.answer != nil {
		if status := c.answer(req.Context(), string(id), life, n); status != http.StatusOK {
			http.Error(w, "no", status)
			return
		}
	}
	fmt.Fprint(w, rand.Text())
}

// at is when a job was run for the nth time, counted from 1.
func (c *counter) at(id string, n int) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.runs[id][n-1].at
}

// audit tells executions that were made because an earlier owner was gone from those that should not have been.
func (c *counter) audit(rep *Report, lives map[int]*life, lapses []lapse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, runs := range c.runs {
		for i := 1; i < len(runs); i++ {
			before, now := runs[i-1], runs[i]
			if leaseLived(before, now, rep.Lease, lives, lapses) {
				rep.Doubled++
				if rep.Doubled <= 5 {
					rep.Examples = append(rep.Examples, fmt.Sprintf("run twice under one lease: %s by life %d at %s and by life %d %s later", id, before.life, before.at.Format(time.TimeOnly), now.life, now.at.Sub(before.at).Round(time.Millisecond)))
				}
			} else {
				rep.Reruns++
			}
		}
	}
}

// leaseLived says whether the lease under which a job ran before lived still when it ran again.
func leaseLived(before, now execution, lease time.Duration, lives map[int]*life, lapses []lapse) bool {
	// The lease began with the claim, before the guest ran and could ask.
	if now.at.Sub(before.at) < lease/2 {
		return true // whatever became of its owner
	}
	owner := lives[before.life]
	for _, l := range lapses {
		if l.replica == owner.replica && l.from.Before(now.at) && l.to.Add(lease).After(before.at) {
			return false // its owner could not be heard for too long
		}
	}
	ended := owner.ended()
	return ended.IsZero() || ended.After(now.at)
}
