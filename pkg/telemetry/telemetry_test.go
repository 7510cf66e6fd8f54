package telemetry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/telemetry"
)

// types are all types of event.
var types = []event.Type{
	event.Attempted, event.Finished, event.Repeated, event.Retried, event.Dead, event.Left, event.Crashed, event.Fenced,
}

func metrics(t *testing.T, g telemetry.Gauges, modules ...string) *telemetry.Metrics {
	t.Helper()
	m, err := telemetry.NewMetrics("1.2.3", modules, g)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// series is one time series of a metric.
type series struct {
	help   string
	labels map[string]string
	value  float64 // of a counter or gauge
}

// gather returns our own series by the metric's name.
func gather(t *testing.T, m *telemetry.Metrics) map[string][]series {
	t.Helper()
	families, err := m.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]series{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "wasmsidecar_") {
			continue
		}
		for _, x := range f.GetMetric() {
			s := series{help: f.GetHelp(), labels: map[string]string{}, value: x.GetCounter().GetValue() + x.GetGauge().GetValue()}
			for _, l := range x.GetLabel() {
				s.labels[l.GetName()] = l.GetValue()
			}
			out[f.GetName()] = append(out[f.GetName()], s)
		}
	}
	return out
}

// R-19: dashboards and alerts are built on these names and labels.
func TestMetricNames(t *testing.T) {
	t.Parallel()
	m := metrics(t, telemetry.Gauges{
		Routes: func() []telemetry.RouteGauge {
			return []telemetry.RouteGauge{{Route: "jobs", InFlight: 2, Out: 5, Bytes: 700, Failed: 3, Paused: map[string]bool{"store": true},
				Breakers: []telemetry.BreakerGauge{{Module: "resize", State: 2}}, Backlog: &telemetry.BacklogGauge{Unsettled: 7, Delayed: 1}}}
		},
		Broker: func() (telemetry.BrokerGauge, bool) {
			return telemetry.BrokerGauge{Name: "kafka", Gaps: 50, Remade: 1, Rebalances: 2}, true
		},
		Topics: func() []telemetry.TopicGauge { return []telemetry.TopicGauge{{Topic: "jobs_dlq", Depth: 6}} },
		Parts: func() []telemetry.PartGauge {
			return []telemetry.PartGauge{{Kind: "broker", Name: "kafka", Up: true}, {Kind: "store", Name: "redis"}}
		},
		Suspects: func() int { return 6 },
		Memory: func() telemetry.MemoryGauge {
			return telemetry.MemoryGauge{Budget: 9, Running: 4, Idle: 3, Waiting: 2, Waits: 7}
		},
	}, "resize")
	j := &job.Job{ID: "1", Route: "jobs", Module: "resize"}
	for _, ty := range types {
		m.Emit(event.Event{Type: ty, Job: j, Kind: job.KindTrap, Duration: time.Millisecond, Wait: time.Millisecond, Unclaimed: job.UnclaimedPure})
	}
	m.Compiled("resize", time.Second)
	want := map[string]string{
		"wasmsidecar_jobs_total":           "module,outcome,route",
		"wasmsidecar_attempts_total":       "module,outcome,route",
		"wasmsidecar_retries_total":        "module,route",
		"wasmsidecar_dead_letters_total":   "kind,module,route",
		"wasmsidecar_repeats_total":        "route",
		"wasmsidecar_crashes_total":        "route",
		"wasmsidecar_fenced_total":         "route",
		"wasmsidecar_left_total":           "route",
		"wasmsidecar_unclaimed_total":      "reason,route",
		"wasmsidecar_run_seconds":          "module,route",
		"wasmsidecar_wait_seconds":         "route",
		"wasmsidecar_compile_seconds":      "module",
		"wasmsidecar_build_info":           "version",
		"wasmsidecar_in_flight":            "route",
		"wasmsidecar_deliveries":           "route",
		"wasmsidecar_delivery_bytes":       "route",
		"wasmsidecar_paused":               "reason,route",
		"wasmsidecar_fetch_failures_total": "route",
		"wasmsidecar_breaker_state":        "module,route",
		"wasmsidecar_backlog":              "route",
		"wasmsidecar_backlog_delayed":      "route",
		"wasmsidecar_dead_letter_depth":    "topic",
		"wasmsidecar_gap_messages_total":   "transport",
		"wasmsidecar_remade_total":         "transport",
		"wasmsidecar_rebalances_total":     "transport",
		"wasmsidecar_broker_up":            "transport",
		"wasmsidecar_store_up":             "store",
		"wasmsidecar_memory_budget_bytes":  "",
		"wasmsidecar_memory_running_bytes": "",
		"wasmsidecar_memory_idle_bytes":    "",
		"wasmsidecar_memory_waiting":       "",
		"wasmsidecar_memory_waits_total":   "",
		"wasmsidecar_suspects":             "",
	}
	got := gather(t, m)
	for name, labels := range want {
		if len(got[name]) != 1 {
			t.Errorf("%s: %v, want one series", name, got[name])
			continue
		}
		if names := slices.Sorted(maps.Keys(got[name][0].labels)); strings.Join(names, ",") != labels {
			t.Errorf("%s has labels %s, want %s", name, names, labels)
		}
		if got[name][0].help == "" {
			t.Errorf("%s has no help", name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is not in the list", name)
		}
	}
	for name, value := range map[string]float64{
		"wasmsidecar_in_flight": 2, "wasmsidecar_deliveries": 5, "wasmsidecar_delivery_bytes": 700, "wasmsidecar_paused": 1, "wasmsidecar_breaker_state": 2, "wasmsidecar_backlog": 7, "wasmsidecar_dead_letter_depth": 6, "wasmsidecar_gap_messages_total": 50, "wasmsidecar_broker_up": 1, "wasmsidecar_store_up": 0,
		"wasmsidecar_memory_budget_bytes": 9, "wasmsidecar_memory_running_bytes": 4, "wasmsidecar_memory_idle_bytes": 3,
		"wasmsidecar_memory_waiting": 2, "wasmsidecar_memory_waits_total": 7, "wasmsidecar_suspects": 6,
	} {
		if v := got[name][0].value; v != value {
			t.Errorf("%s is %v, want %v", name, v, value)
		}
	}
	if v := got["wasmsidecar_jobs_total"][0].value; v != 1 {
		t.Errorf("%v jobs, want 1: the finished one", v)
	}
}

// Producers choose what module they ask for; they must not fill the memory with series.
func TestUnknownModulesAreOneSeries(t *testing.T) {
	t.Parallel()
	m := metrics(t, telemetry.Gauges{}, "resize")
	emit := func(module string) {
		for _, ty := range types {
			m.Emit(event.Event{Type: ty, Job: &job.Job{ID: "1", Route: "jobs", Module: module}, Kind: job.KindInvalid, Duration: 1})
		}
		m.Compiled(module, 1)
	}
	emit("resize")
	for i := range 1000 {
		emit(fmt.Sprint("made-up-", i))
	}
	emit("")
	emit("\xff\n")
	for name, all := range gather(t, m) {
		if len(all) > 2 {
			t.Errorf("%s has %d series", name, len(all))
		}
		for _, x := range all {
			if module, ok := x.labels["module"]; ok && module != "resize" && module != "unknown" {
				t.Errorf("%s names module %q", name, module)
			}
		}
	}
}

// lines emits events and returns what was logged.
func lines(t *testing.T, level string, es ...event.Event) []map[string]any {
	t.Helper()
	var b bytes.Buffer
	log, err := telemetry.NewLogger(&b, "json", level)
	if err != nil {
		t.Fatal(err)
	}
	sink := telemetry.NewLog(log)
	for _, e := range es {
		sink.Emit(e)
	}
	var out []map[string]any
	for dec := json.NewDecoder(&b); ; {
		var m map[string]any
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
}

func TestLogLevels(t *testing.T) {
	t.Parallel()
	want := map[event.Type]string{
		event.Finished: "INFO", event.Repeated: "INFO", event.Retried: "WARN", event.Dead: "ERROR", event.Crashed: "WARN",
		event.Fenced: "WARN", event.Left: "DEBUG", event.Attempted: "DEBUG",
	}
	j := &job.Job{ID: "1", Route: "jobs", Module: "m"}
	for _, ty := range types {
		got := lines(t, "debug", event.Event{Type: ty, Job: j})
		if len(got) != 1 || got[0]["level"] != want[ty] {
			t.Errorf("%s: %v, want one line of %s", ty, got, want[ty])
		}
	}
	for level, n := range map[string]int{"debug": 8, "info": 6, "warn": 4, "error": 1} {
		var es []event.Event
		for _, ty := range types {
			es = append(es, event.Event{Type: ty, Job: j})
		}
		if got := lines(t, level, es...); len(got) != n {
			t.Errorf("level %s: %d lines, want %d", level, len(got), n)
		}
	}
}

func TestLogLineIsCompleteAndClean(t *testing.T) {
	t.Parallel()
	evil := "a\r\nlevel=ERROR \x1b[31m\xff"
	got := lines(t, "info", event.Event{
		Type: event.Finished, Kind: job.KindFailed, Attempt: 2, Duration: time.Second, Delay: time.Minute, Err: errors.New(evil + strings.Repeat("x", 5000)),
		Job: &job.Job{ID: evil, Route: "jobs", Module: evil, CorrelationID: evil + "2"},
	})
	if len(got) != 1 {
		t.Fatalf("%d lines", len(got))
	}
	for key, want := range map[string]any{"msg": "job finished", "route": "jobs", "kind": "failed", "attempt": 2.0} {
		if got[0][key] != want {
			t.Errorf("%s is %v, want %v", key, got[0][key], want)
		}
	}
	for _, key := range []string{"job_id", "module", "correlation_id", "err"} {
		s, ok := got[0][key].(string)
		if !ok || s == "" || strings.ContainsAny(s, "\r\n\x1b") || len(s) > job.MaxErrorText {
			t.Errorf("%s is not clean: %q", key, s)
		}
	}
}

func TestNewLoggerRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{{"yaml", "info"}, {"text", "loud"}, {"", ""}} {
		if _, err := telemetry.NewLogger(io.Discard, c[0], c[1]); err == nil {
			t.Errorf("format %q, level %q: no error", c[0], c[1])
		}
	}
}

func Example() {
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	metrics, err := telemetry.NewMetrics("1.2.3", []string{"resize"}, telemetry.Gauges{})
	if err != nil {
		panic(err)
	}
	sink := event.Sinks{telemetry.NewLog(log), metrics}
	sink.Emit(event.Event{
		Type: event.Finished, Job: &job.Job{ID: "42", Route: "pictures", Module: "resize"}, Kind: job.KindOK, Attempt: 1, Duration: 12 * time.Millisecond,
	})
	// Output: level=INFO msg="job finished" job_id=42 route=pictures module=resize kind=ok attempt=1 duration=12ms
}
