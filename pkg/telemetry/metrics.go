package telemetry

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Metrics is a sink that counts, and a prometheus.Gatherer of what it counted. Module names that are not configured, which
// producers may choose freely, are counted as "unknown", so that nobody can grow the number of series.
type Metrics struct {
	*prometheus.Registry
	known map[string]bool

	jobs, attempts, retries, letters, repeats, crashes, fenced, left, unclaimed *prometheus.CounterVec
	run, wait                                                                   *prometheus.HistogramVec
	compile                                                                     *prometheus.HistogramVec
	swaps                                                                       *prometheus.CounterVec
	fired, missed, held                                                         *prometheus.CounterVec
	lateness                                                                    *prometheus.HistogramVec

	mu     sync.RWMutex
	common map[labels]*series
}

// labels tell apart the series that every job touches.
type labels struct {
	route, module string
	kind          job.Kind
	unclaimed     job.Unclaimed // of attempts
}

// series are those, found once: looking a series up by its labels costs more than counting.
type series struct {
	jobs, attempts, unclaimed prometheus.Counter // unclaimed is nil for those that were claimed
	run, wait                 prometheus.Observer
}

// Gauges is what is asked for whenever metrics are read. All functions must be safe for concurrent use and quick.
type Gauges struct {
	Routes  func() []RouteGauge
	Broker  func() (BrokerGauge, bool)
	Topics  func() []TopicGauge
	Parts   func() []PartGauge
	Memory  func() MemoryGauge
	Modules func() []ModuleGauge
	// Suspects is how many jobs the others are held back for.
	Suspects func() int
}

// MemoryGauge is how the memory of all guests together stands, in bytes.
type MemoryGauge struct {
	Budget, Running, Idle int64
	Waiting               int
	Waits                 uint64
}

// RouteGauge is the state of a route.
type RouteGauge struct {
	Route         string
	InFlight, Out int
	Bytes         int64           // of the deliveries that are out
	Failed        int64           // reads of the source that failed so far
	Paused        map[string]bool // by reason, of which each has an entry
	Breakers      []BreakerGauge  // of its modules, where there are any
	Backlog       *BacklogGauge   // nil where it is not known
}

// BreakerGauge is the state of a module's breaker: 0 closed, 1 half open, 2 open.
type BreakerGauge struct {
	Module string
	State  int
}

// BacklogGauge is what waits for a route at its broker. Delayed is negative where that is not known.
type BacklogGauge struct{ Unsettled, Delayed int64 }

// TopicGauge is how many messages a topic of dead letters holds.
type TopicGauge struct {
	Topic string
	Depth int64
}

// BrokerGauge is what a transport has counted since it was opened.
type BrokerGauge struct {
	Name                     string
	Gaps, Remade, Rebalances int64
}

// PartGauge says whether a part outside the process answers: kind "broker" or "store".
type PartGauge struct {
	Kind, Name string
	Up         bool
}

// ModuleGauge is the state of a module: how many versions of it there are, those included that still finish jobs.
type ModuleGauge struct {
	Module   string
	Versions int
}

// buckets reach from a tenth of a millisecond to ten minutes.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 600}

// NewMetrics makes the metrics of a process whose modules are named in modules.
func NewMetrics(version string, modules []string, g Gauges) (*Metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "wasmsidecar", Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "wasmsidecar", Name: name, Help: help, Buckets: buckets}, labels)
	}
	m := &Metrics{
		Registry:  prometheus.NewRegistry(),
		known:     map[string]bool{},
		common:    map[labels]*series{},
		jobs:      counter("jobs_total", "Jobs finished, by outcome.", "route", "module", "outcome"),
		attempts:  counter("attempts_total", "Attempts made, by how they ended.", "route", "module", "outcome"),
		retries:   counter("retries_total", "Attempts after which the job is tried again.", "route", "module"),
		letters:   counter("dead_letters_total", "Dead letters written.", "route", "module", "kind"),
		repeats:   counter("repeats_total", "Jobs seen again whose recorded outcome was emitted again.", "route"),
		crashes:   counter("crashes_total", "Executions that ended without a word, found by the next owner.", "route"),
		fenced:    counter("fenced_total", "Writes of stale owners that were refused.", "route"),
		left:      counter("left_total", "Deliveries left for later: another owner, or a part that is away.", "route"),
		unclaimed: counter("unclaimed_total", "Attempts made without a claim: nobody could see that the job ran twice (pure), or the store is away and on_store_error is run (store).", "route", "reason"),
		run:       histogram("run_seconds", "Time of an attempt in its module.", "route", "module"),
		wait:      histogram("wait_seconds", "Time from publication to the beginning of the job.", "route"),
		compile:   histogram("compile_seconds", "Time to make a module ready to run.", "module"),
		swaps:     counter("module_swaps_total", "Changed module files: taken into use (swapped) or not (refused).", "module", "outcome"),
		fired:     counter("schedule_jobs_total", "Jobs that schedules have published.", "schedule"),
		missed:    counter("schedule_missed_total", "Times of schedules that passed without a job.", "schedule"),
		held:      counter("schedule_failures_total", "Tries to publish or record a schedule's job that failed.", "schedule"),
		lateness:  histogram("schedule_lateness_seconds", "Time from when a schedule's job was due, jitter included, to its publication.", "schedule"),
	}
	for _, name := range modules {
		m.known[name] = true
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "wasmsidecar", Name: "build_info", Help: "The running version."}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	var errs []error
	for _, c := range []prometheus.Collector{
		m.jobs, m.attempts, m.retries, m.letters, m.repeats, m.crashes, m.fenced, m.left, m.unclaimed, m.run, m.wait, m.compile, m.swaps, m.fired, m.missed, m.held, m.lateness, build,
		&gauges{g}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		errs = append(errs, m.Register(c))
	}
	return m, errors.Join(errs...)
}

// Compiled notes how long it took to make a module ready.
func (m *Metrics) Compiled(module string, d time.Duration) {
	m.compile.WithLabelValues(m.module(module)).Observe(d.Seconds())
}

// Swapped notes that a changed module was taken into use, or refused.
func (m *Metrics) Swapped(module string, ok bool) {
	outcome := "refused"
	if ok {
		outcome = "swapped"
	}
	m.swaps.WithLabelValues(m.module(module), outcome).Inc()
}

// ScheduleFired notes that a schedule's job was published.
func (m *Metrics) ScheduleFired(schedule string, late time.Duration) {
	m.fired.WithLabelValues(schedule).Inc()
	m.lateness.WithLabelValues(schedule).Observe(late.Seconds())
}

// ScheduleMissed notes that n times of a schedule will have no job.
func (m *Metrics) ScheduleMissed(schedule string, n int) {
	m.missed.WithLabelValues(schedule).Add(float64(n))
}

// ScheduleFailed notes that a schedule's job could not be published or recorded for now.
func (m *Metrics) ScheduleFailed(schedule string) { m.held.WithLabelValues(schedule).Inc() }

func (m *Metrics) module(name string) string {
	if m.known[name] {
		return name
	}
	return "unknown"
}

// find returns the series of a job. There are no more of them than routes, known modules and kinds allow.
func (m *Metrics) find(l labels) *series {
	m.mu.RLock()
	s := m.common[l]
	m.mu.RUnlock()
	if s != nil {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s = &series{
		jobs: m.jobs.WithLabelValues(l.route, l.module, string(l.kind)), attempts: m.attempts.WithLabelValues(l.route, l.module, string(l.kind)),
		run: m.run.WithLabelValues(l.route, l.module), wait: m.wait.WithLabelValues(l.route),
	}
	if l.unclaimed != "" {
		s.unclaimed = m.unclaimed.WithLabelValues(l.route, string(l.unclaimed))
	}
	m.common[l] = s
	return s
}

// Emit counts the event.
func (m *Metrics) Emit(e event.Event) {
	route, module := e.Job.Route, m.module(e.Job.Module)
	switch e.Type {
	case event.Finished:
		s := m.find(labels{route, module, e.Kind, ""})
		s.jobs.Inc()
		s.wait.Observe(e.Wait.Seconds())
	case event.Attempted:
		s := m.find(labels{route, module, e.Kind, e.Unclaimed})
		s.attempts.Inc()
		if s.unclaimed != nil {
			s.unclaimed.Inc()
		}
		if e.Duration > 0 {
			s.run.Observe(e.Duration.Seconds())
		}
	case event.Retried:
		m.retries.WithLabelValues(route, module).Inc()
	case event.Dead:
		m.letters.WithLabelValues(route, module, string(e.Kind)).Inc()
	case event.Repeated:
		m.repeats.WithLabelValues(route).Inc()
	case event.Crashed:
		m.crashes.WithLabelValues(route).Inc()
	case event.Fenced:
		m.fenced.WithLabelValues(route).Inc()
	case event.Left:
		m.left.WithLabelValues(route).Inc()
	}
}

// gauges reads the state of the parts when metrics are gathered.
type gauges struct{ g Gauges }

var (
	descInFlight = prometheus.NewDesc("wasmsidecar_in_flight", "Jobs running.", []string{"route"}, nil)
	descOut      = prometheus.NewDesc("wasmsidecar_deliveries", "Deliveries not settled, those running included.", []string{"route"}, nil)
	descOutBytes = prometheus.NewDesc("wasmsidecar_delivery_bytes", "Bytes of the deliveries not settled.", []string{"route"}, nil)
	descPaused   = prometheus.NewDesc("wasmsidecar_paused", "1 while the route takes no jobs for this reason.", []string{"route", "reason"}, nil)
	descFailed   = prometheus.NewDesc("wasmsidecar_fetch_failures_total", "Reads of the route's source that failed.", []string{"route"}, nil)
	descBudget   = prometheus.NewDesc("wasmsidecar_memory_budget_bytes", "What the memory of all guests together may take.", nil, nil)
	descRunning  = prometheus.NewDesc("wasmsidecar_memory_running_bytes", "What the jobs that run may take of it.", nil, nil)
	descIdle     = prometheus.NewDesc("wasmsidecar_memory_idle_bytes", "What instances have of it that wait for a job.", nil, nil)
	descWaiting  = prometheus.NewDesc("wasmsidecar_memory_waiting", "Jobs that wait for memory.", nil, nil)
	descWaits    = prometheus.NewDesc("wasmsidecar_memory_waits_total", "Jobs that have waited for memory.", nil, nil)
	descSuspects = prometheus.NewDesc("wasmsidecar_suspects", "Jobs that the others are held back for: they may end the process, and run alone.", nil, nil)
	descVersions = prometheus.NewDesc("wasmsidecar_module_versions", "Versions in memory: more than 1 while jobs still run on one that was replaced.", []string{"module"}, nil)
	descBreaker  = prometheus.NewDesc("wasmsidecar_breaker_state", "0 closed, 1 half open, 2 open.", []string{"route", "module"}, nil)
	descBacklog  = prometheus.NewDesc("wasmsidecar_backlog", "Messages that are due and not settled; the consumer lag.", []string{"route"}, nil)
	descDelayed  = prometheus.NewDesc("wasmsidecar_backlog_delayed", "Messages that are not due yet.", []string{"route"}, nil)
	descDepth    = prometheus.NewDesc("wasmsidecar_dead_letter_depth", "Messages in a topic of dead letters.", []string{"topic"}, nil)
	descGaps     = prometheus.NewDesc("wasmsidecar_gap_messages_total", "Messages that the broker dropped before they were read.", []string{"transport"}, nil)
	descRemade   = prometheus.NewDesc("wasmsidecar_remade_total", "Topics, groups and consumers that were found deleted or made again.", []string{"transport"}, nil)
	descMoves    = prometheus.NewDesc("wasmsidecar_rebalances_total", "Times that partitions were given or taken.", []string{"transport"}, nil)
	descUp       = map[string]*prometheus.Desc{
		"broker": prometheus.NewDesc("wasmsidecar_broker_up", "1 while the broker answers.", []string{"transport"}, nil),
		"store":  prometheus.NewDesc("wasmsidecar_store_up", "1 while the store answers.", []string{"store"}, nil),
	}
)

// Describe sends the descriptions of all gauges.
func (c *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descInFlight, descOut, descOutBytes, descPaused, descFailed, descVersions, descBreaker, descBacklog, descDelayed, descDepth, descGaps, descRemade, descMoves, descBudget, descRunning, descIdle, descWaiting, descWaits, descSuspects, descUp["broker"], descUp["store"]} {
		ch <- d
	}
}

// Collect sends the gauges as they stand.
func (c *gauges) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, n int64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), label)
	}
	if c.g.Broker != nil {
		if b, ok := c.g.Broker(); ok {
			count(descGaps, b.Gaps, b.Name)
			count(descRemade, b.Remade, b.Name)
			count(descMoves, b.Rebalances, b.Name)
		}
	}
	if c.g.Routes != nil {
		for _, r := range c.g.Routes() {
			gauge(descInFlight, float64(r.InFlight), r.Route)
			gauge(descOut, float64(r.Out), r.Route)
			gauge(descOutBytes, float64(r.Bytes), r.Route)
			for reason, paused := range r.Paused {
				gauge(descPaused, bit(paused), r.Route, reason)
			}
			count(descFailed, r.Failed, r.Route)
			for _, b := range r.Breakers {
				gauge(descBreaker, float64(b.State), r.Route, b.Module)
			}
			if r.Backlog != nil {
				gauge(descBacklog, float64(r.Backlog.Unsettled), r.Route)
			}
			if r.Backlog != nil && r.Backlog.Delayed >= 0 {
				gauge(descDelayed, float64(r.Backlog.Delayed), r.Route)
			}
		}
	}
	if c.g.Topics != nil {
		for _, t := range c.g.Topics() {
			gauge(descDepth, float64(t.Depth), t.Topic)
		}
	}
	if c.g.Memory != nil {
		m := c.g.Memory()
		gauge(descBudget, float64(m.Budget))
		gauge(descRunning, float64(m.Running))
		gauge(descIdle, float64(m.Idle))
		gauge(descWaiting, float64(m.Waiting))
		ch <- prometheus.MustNewConstMetric(descWaits, prometheus.CounterValue, float64(m.Waits))
	}
	if c.g.Suspects != nil {
		gauge(descSuspects, float64(c.g.Suspects()))
	}
	if c.g.Modules != nil {
		for _, m := range c.g.Modules() {
			gauge(descVersions, float64(m.Versions), m.Module)
		}
	}
	if c.g.Parts != nil {
		for _, p := range c.g.Parts() {
			if d, ok := descUp[p.Kind]; ok {
				gauge(d, bit(p.Up), p.Name)
			}
		}
	}
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
