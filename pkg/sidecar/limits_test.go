package sidecar

import (
	"log/slog"
	"reflect"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
)

// Every limit of the configuration gets to the engine, a route's as a module's.
func TestLimitsAreTranslated(t *testing.T) {
	t.Parallel()
	var own config.Limits
	var route config.RouteLimits
	v, r := reflect.ValueOf(&own).Elem(), reflect.ValueOf(&route).Elem()
	for i := range v.NumField() {
		v.Field(i).SetInt(int64(i) + 1)
		p := r.FieldByName(v.Type().Field(i).Name)
		p.Set(reflect.New(p.Type().Elem()))
		p.Elem().SetInt(int64(i) + 1)
	}
	if r.NumField() != v.NumField() {
		t.Errorf("a route has %d limits, a module %d", r.NumField(), v.NumField())
	}
	got := limitsOf(own)
	if again := routeLimits(route); again != got {
		t.Errorf("a route's limits are %+v, a module's %+v", again, got)
	}
	seen := map[int64]bool{}
	for i, g := 0, reflect.ValueOf(got); i < g.NumField(); i++ {
		n := g.Field(i).Int()
		if n < 1 || n > int64(v.NumField()) || seen[n] {
			t.Errorf("%s is %d", g.Type().Field(i).Name, n)
		}
		seen[n] = true
	}
}

// The budget is what is said, else a part of what there is, and never less than a module needs.
func TestBudget(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	cfg := config.Default()
	if n := budget(cfg, log); n <= 0 {
		t.Errorf("the budget is %d", n)
	}
	m := config.DefaultModule()
	m.Limits.Memory = 1 << 60
	cfg.Modules["huge"] = m
	if n := budget(cfg, log); n != 1<<60 {
		t.Errorf("the budget is %d with a module that may take %d", n, m.Limits.Memory)
	}
	if cfg.MemoryBudget = 7; budget(cfg, log) != 7 {
		t.Error("the budget is not what the configuration says")
	}
}
