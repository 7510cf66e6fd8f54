//go:build !wasip1

package guest_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/guest"
)

// The fake is one job at a time, so these tests do not run in parallel.
func TestServe(t *testing.T) {
	tests := []struct {
		name    string
		handler guest.Handler
		fake    guest.Fake
		result  string
		err     string
		after   time.Duration
	}{
		{name: "result", handler: func(in []byte) ([]byte, error) { return bytes.ToUpper(in), nil }, fake: guest.Fake{Body: []byte("hello")}, result: "HELLO"},
		{name: "failed", handler: func([]byte) ([]byte, error) { return []byte("x"), errors.New("no") }, err: "no"},
		{name: "retry", handler: func([]byte) ([]byte, error) {
			return nil, fmt.Errorf("wrapped: %w", guest.Retry(1500*time.Millisecond, errors.New("later")))
		}, err: "wrapped: later", after: 1500 * time.Millisecond},
		{name: "no handler", err: "guest.Handle"},
		{name: "header and config", handler: func([]byte) ([]byte, error) {
			_, ok := guest.LookupHeader("none")
			_, set := guest.LookupConfig("none")
			return fmt.Append(nil, guest.Header("x-long"), guest.Config("name"), ok, set), nil
		}, fake: guest.Fake{Header: map[string]string{"X-Long": strings.Repeat("x", 1000)}, Config: map[string]string{"name": "value"}},
			result: strings.Repeat("x", 1000) + "valuefalse false"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			guest.Handle(tt.handler)
			err := tt.fake.Run()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || tt.fake.RetryAfter != tt.after || tt.fake.Result != nil {
					t.Errorf("error %v after %s with %q; want %q after %s", err, tt.fake.RetryAfter, tt.fake.Result, tt.err, tt.after)
				}
				return
			}
			if err != nil || string(tt.fake.Result) != tt.result {
				t.Errorf("result %q, %v; want %q", tt.fake.Result, err, tt.result)
			}
		})
	}
}

func TestLogAndHeaders(t *testing.T) {
	guest.Handle(func([]byte) ([]byte, error) {
		guest.Logf(abi.LogWarn, "%d things", 2)
		guest.SetHeader("Content-Type", "text/plain")
		return nil, nil
	})
	f := &guest.Fake{}
	if err := f.Run(); err != nil || !slices.Equal(f.Log, []string{"2 2 things"}) || f.ResultHeader["Content-Type"] != "text/plain" {
		t.Errorf("log %q, headers %v, %v", f.Log, f.ResultHeader, err)
	}
}

func TestDo(t *testing.T) {
	guest.Handle(func([]byte) ([]byte, error) {
		r, err := guest.Do(guest.Request{Method: "POST", URL: "https://api.example.com/", Header: [][2]string{{"X-A", "b"}}, Body: []byte("in")})
		if err != nil {
			return nil, err
		}
		return fmt.Append(nil, r.Status, r.Header, string(r.Body)), nil
	})
	f := &guest.Fake{Do: func(r guest.Request) (*guest.Response, error) {
		if r.Method != "POST" || r.URL != "https://api.example.com/" || len(r.Header) != 1 || r.Header[0] != [2]string{"X-A", "b"} || string(r.Body) != "in" {
			t.Errorf("request %+v", r)
		}
		return &guest.Response{Status: 201, Header: [][2]string{{"X-C", "d"}}, Body: []byte("out")}, nil
	}}
	if err := f.Run(); err != nil || string(f.Result) != "201 [[X-C d]]out" {
		t.Errorf("result %q, %v", f.Result, err)
	}
	f.Do = nil
	if err := f.Run(); err == nil || !strings.Contains(err.Error(), "http request: not granted") {
		t.Errorf("denied: %v", err)
	}
}

func ExampleHandle() {
	guest.Handle(func(in []byte) ([]byte, error) {
		if len(in) == 0 {
			return nil, errors.New("nothing to do")
		}
		return bytes.ToUpper(in), nil
	})
	// On wasip1 the sidecar calls the handler; in a test a Fake does.
	job := guest.Fake{Body: []byte("hello")}
	fmt.Println(job.Run(), string(job.Result))
	// Output: <nil> HELLO
}
