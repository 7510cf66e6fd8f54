package runtime_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// What is measured is what there is: the levels of each ABI, the figures that do not depend on the machine, and times of all the rest.
func TestMeasure(t *testing.T) {
	t.Parallel()
	x := strings.Repeat("x", 1000)
	for _, tt := range []struct {
		guest, in string
		levels    []string
		cannot    string // the level that was not measured
	}{
		{"upper", x, []string{"reset", "fresh", "reuse", "usual"}, ""},
		{"upper-c", x, []string{"reset", "frozen", "fresh", "usual"}, ""},
		{"upper-extism", x, []string{"reset", "fresh", "reuse", "usual"}, ""},
		{"upper-shallabuf", `{"text":"hello"}`, []string{"reset", "fresh", "reuse", "usual"}, ""},
		{"echo-drasm", x, []string{"reset", "fresh", "reuse", "usual"}, ""},
		{"stains-table", x, []string{"reset", "fresh", "reuse", "usual"}, "reset"},
	} {
		var said []string
		m, err := runtime.Measure(t.Context(), runtime.Measurement{
			Module: runtime.ModuleConfig{Name: "m", Wasm: guests.Bytes(tt.guest)}, Job: newJob(tt.in),
			Duration: 100 * time.Millisecond, Goroutines: 2, Progress: func(what string) { said = append(said, what) },
		})
		if err != nil {
			t.Errorf("%s: %v", tt.guest, err)
			continue
		}
		var levels []string
		for _, l := range m.Levels {
			levels = append(levels, l.Name)
			switch {
			case l.Name == tt.cannot:
				if l.Why == "" || l.Jobs != 0 {
					t.Errorf("%s: %+v", tt.guest, l)
				}
			case l.Why != "" || l.Jobs < 18 || l.Micros <= 0 || l.Ratio <= 0 || l.Name == runtime.LevelUsual && l.Ratio != 1:
				t.Errorf("%s: %+v", tt.guest, l)
			}
		}
		if !slices.Equal(levels, tt.levels) {
			t.Errorf("%s: levels %v, want %v", tt.guest, levels, tt.levels)
		}
		if m.Fuel == 0 || m.FuelVaries || m.Cold <= 0 || m.Warm <= 0 || len(said) < 9 {
			t.Errorf("%s: %+v, %d times", tt.guest, m, len(said))
		}
		// On every system but those that do not tell. What an instance takes is measured by the process's memory, and other tests
		// take some at the same time.
		if tt.cannot == "" && m.DirtyPages >= 0 && (m.DirtyPages < 1 || m.DirtyPages > 8 || m.Instance < int64(m.DirtyPages)<<12) {
			t.Errorf("%s: %+v", tt.guest, m)
		}
	}
	_, err := runtime.Measure(t.Context(), runtime.Measurement{
		Module: runtime.ModuleConfig{Name: "m", Wasm: guests.Bytes("trap")}, Job: newJob("x"), Duration: time.Second, Goroutines: 1,
	})
	if err == nil || !strings.Contains(err.Error(), "the job fails: ") {
		t.Errorf("a guest that traps: %v", err)
	}
}
