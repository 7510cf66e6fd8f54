package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/wasmsidecar/wasmsidecar/pkg/api"
)

// serve runs a server with these checks until the test ends; the returned function ends it earlier.
func serve(t *testing.T, ready func() []api.Check, g prometheus.Gatherer) (url string, stop func()) {
	t.Helper()
	s, err := api.New(api.Config{Listen: "127.0.0.1:0", Ready: ready, Gatherer: g, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var ended atomic.Bool
	stop = func() {
		cancel()
		if ended.Swap(true) {
			return
		}
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return "http://" + s.Addr(), stop
}

func get(t *testing.T, method, url string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func TestHealthAndReadiness(t *testing.T) {
	t.Parallel()
	var up atomic.Bool
	url, _ := serve(t, func() []api.Check {
		c := api.Check{Name: "store redis", OK: up.Load()}
		if !c.OK {
			c.Detail = "connection refused"
		}
		return []api.Check{{Name: "broker kafka", OK: true}, c}
	}, prometheus.NewRegistry())

	for _, ok := range []bool{false, true} {
		up.Store(ok)
		if status, body := get(t, "GET", url+"/healthz"); status != 200 || body != "ok\n" {
			t.Errorf("healthz: %d %q; the process lives, whatever is away", status, body)
		}
		status, body := get(t, "GET", url+"/readyz")
		var answer struct {
			Ready  bool
			Checks []api.Check
		}
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Fatalf("readyz: %v in %s", err, body)
		}
		want := map[bool]int{true: 200, false: 503}[ok]
		if status != want || answer.Ready != ok || len(answer.Checks) != 2 || answer.Checks[1].OK != ok {
			t.Errorf("readyz with the store up %t: %d %s", ok, status, body)
		}
		if !ok && answer.Checks[1].Detail != "connection refused" {
			t.Errorf("readyz does not say why: %s", body)
		}
	}
	for target, want := range map[string]int{"POST /healthz": 405, "PUT /readyz": 405, "DELETE /metrics": 405, "GET /": 404, "GET /healthz/x": 404} {
		method, path, _ := strings.Cut(target, " ")
		if status, _ := get(t, method, url+path); status != want {
			t.Errorf("%s: %d, want %d", target, status, want)
		}
	}
}

func TestMetricsAreServed(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "jobs_total", Help: "Jobs."})
	reg.MustRegister(c)
	c.Add(3)
	url, _ := serve(t, func() []api.Check { return nil }, reg)
	if status, body := get(t, "GET", url+"/metrics"); status != 200 || !strings.Contains(body, "jobs_total 3") {
		t.Errorf("metrics: %d %s", status, body)
	}
}

// A request that is being answered when the server ends is answered to its end, and Run waits for that.
func TestRunFinishesWhatItAnswers(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}), make(chan struct{})
	url, stop := serve(t, func() []api.Check {
		close(asked)
		<-answer
		return []api.Check{{Name: "slow", OK: true}}
	}, prometheus.NewRegistry())
	body := make(chan string, 1)
	go func() {
		_, b := get(t, "GET", url+"/readyz")
		body <- b
	}()
	<-asked
	over := make(chan struct{})
	go func() {
		stop()
		close(over)
	}()
	select {
	case <-over:
		t.Error("Run returned with a request under way")
	case <-time.After(50 * time.Millisecond):
	}
	close(answer)
	<-over
	if b := <-body; !strings.Contains(b, "slow") {
		t.Errorf("the answer was cut off: %q", b)
	}
}

// A client that sends nothing, or half a request, holds up neither other clients nor the end.
func TestSlowClientHoldsUpNobody(t *testing.T) {
	t.Parallel()
	url, stop := serve(t, func() []api.Check { return nil }, prometheus.NewRegistry())
	for _, sent := range []string{"", "GET /heal"} {
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, sent); err != nil {
			t.Fatal(err)
		}
	}
	if status, _ := get(t, "GET", url+"/healthz"); status != 200 {
		t.Errorf("healthz: %d", status)
	}
	begun := time.Now()
	stop()
	if d := time.Since(begun); d > 30*time.Second {
		t.Errorf("ended after %s", d)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	ok := api.Config{Listen: "127.0.0.1:0", Ready: func() []api.Check { return nil }, Gatherer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)}
	s, err := api.New(ok)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	taken, noReady, noMetrics, noLog := ok, ok, ok, ok
	taken.Listen, noReady.Ready, noMetrics.Gatherer, noLog.Log = s.Addr(), nil, nil, nil
	for name, cfg := range map[string]api.Config{"address taken": taken, "no readiness": noReady, "no metrics": noMetrics, "no log": noLog} {
		if s, err := api.New(cfg); err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

func Example() {
	s, err := api.New(api.Config{
		Listen: "127.0.0.1:0", Gatherer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
		Ready: func() []api.Check { return []api.Check{{Name: "broker nats", OK: true}} },
	})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r, err := http.Get("http://" + s.Addr() + "/readyz")
	if err != nil {
		panic(err)
	}
	defer r.Body.Close()
	fmt.Println(r.Status)
	stop()
	fmt.Println(<-done)
	// Output:
	// 200 OK
	// <nil>
}
