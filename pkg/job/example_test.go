package job_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

func ExampleRunner() {
	var shout job.Runner = job.RunnerFunc(func(_ context.Context, j *job.Job) (*job.Result, error) {
		if len(j.Body) == 0 {
			return nil, job.Errorf(job.KindFailed, "there is nothing to shout")
		}
		return &job.Result{Body: []byte(strings.ToUpper(string(j.Body)))}, nil
	})
	for _, body := range []string{"hello", ""} {
		r, err := shout.Run(context.Background(), &job.Job{ID: "1", Body: []byte(body)})
		if err != nil {
			fmt.Println(job.KindOf(err), err)
			continue
		}
		fmt.Println(string(r.Body))
	}
	// Output:
	// HELLO
	// failed there is nothing to shout
}

// The Kind of an error decides what becomes of the job.
func ExampleKindOf() {
	away := &job.Error{Kind: job.KindUpstream, Err: errors.New("the shop does not answer"), RetryAfter: 30 * time.Second}
	for _, err := range []error{nil, fmt.Errorf("order: %w", away), errors.New("says nothing")} {
		k := job.KindOf(err)
		fmt.Println(k, k.Fate().Retry, k.Fate().DeadLetter, job.RetryAfterOf(err))
	}
	// Output:
	// ok false false 0s
	// upstream true true 30s
	// internal true true 0s
}

func ExampleHeader() {
	var h job.Header
	h.Add("Accept", "image/png")
	h.Add("accept", "image/webp")
	h.Set("Content-Type", "text/plain")
	fmt.Println(h.Get("ACCEPT"), h.Values("accept"), len(h))
	h.Del("Accept")
	fmt.Println(h)
	// Output:
	// image/png [image/png image/webp] 3
	// [{Content-Type text/plain}]
}
