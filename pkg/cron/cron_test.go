package cron_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/cron"
)

func parse(t testing.TB, expr, zone string) *cron.Expr {
	t.Helper()
	loc, err := cron.Zone(zone)
	if err != nil {
		t.Fatal(err)
	}
	e, err := cron.Parse(expr, loc)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

const form = "2006-01-02 15:04:05 -07"

// S-16: when expressions are due, also where the clock is put forward and back.
func TestNext(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		expr, zone, from string
		want             []string
	}{
		{"0 30 2 * * *", "", "2026-11-22 02:29:59 +00", []string{"2026-11-22 02:30:00 +00", "2026-11-23 02:30:00 +00"}},
		{"30 2 * * *", "UTC", "2026-11-22 02:30:00 +00", []string{"2026-11-23 02:30:00 +00"}},
		{"30 2 * * *", "Europe/Berlin", "2026-11-22 02:30:00 +00", []string{"2026-11-23 02:30:00 +01"}},
		{"* * * * * *", "", "2026-11-22 02:29:59 +00", []string{"2026-11-22 02:30:00 +00", "2026-11-22 02:30:01 +00"}},
		{"*/15 9-17 * * MON-FRI", "", "2026-11-20 17:45:00 +00", []string{"2026-11-23 09:00:00 +00", "2026-11-23 09:15:00 +00"}},
		{"0 0 13 * FRI", "", "2026-11-01 00:00:00 +00", []string{"2026-11-06 00:00:00 +00", "2026-11-13 00:00:00 +00"}}, // either day
		{"0 12 29 2 *", "", "2097-01-01 00:00:00 +00", []string{"2104-02-29 12:00:00 +00"}},
		{"30 2 * * *", "Europe/Berlin", "2040-12-30 00:00:00 +01", []string{"2040-12-30 02:30:00 +01", "2040-12-31 02:30:00 +01", "2041-01-01 02:30:00 +01"}}, // a leap year
		{"30 23 31 12 *", "America/New_York", "2040-01-01 00:00:00 -05", []string{"2040-12-31 23:30:00 -05", "2041-12-31 23:30:00 -05"}},
		{"@hourly", "", "2026-11-22 02:29:59 +00", []string{"2026-11-22 03:00:00 +00"}},
		{"@weekly", "America/New_York", "2026-11-22 05:00:00 +00", []string{"2026-11-29 00:00:00 -05"}},
		{"@every 90s", "Asia/Tokyo", "2026-11-22 00:00:01 +00", []string{"2026-11-22 09:01:30 +09", "2026-11-22 09:03:00 +09"}},
		{"@every 7s", "", "1969-12-31 23:59:55 +00", []string{"1970-01-01 00:00:00 +00", "1970-01-01 00:00:07 +00"}},

		// Berlin puts the clock forward on March 29, 2026: after 01:59:59 comes 03:00:00.
		{"30 2 * * *", "Europe/Berlin", "2026-03-28 00:00:00 +01", []string{"2026-03-28 02:30:00 +01", "2026-03-29 03:00:00 +02", "2026-03-30 02:30:00 +02"}},
		{"0 2 * * *", "Europe/Berlin", "2026-03-28 03:00:00 +01", []string{"2026-03-29 03:00:00 +02", "2026-03-30 02:00:00 +02"}},
		{"0 3 * * *", "Europe/Berlin", "2026-03-28 04:00:00 +01", []string{"2026-03-29 03:00:00 +02", "2026-03-30 03:00:00 +02"}},
		{"0,30 2,3 * * *", "Europe/Berlin", "2026-03-29 00:00:00 +01", []string{"2026-03-29 03:00:00 +02", "2026-03-29 03:30:00 +02", "2026-03-30 02:00:00 +02"}},
		{"0 30 2 29 3 *", "Europe/Berlin", "2026-01-01 00:00:00 +01", []string{"2026-03-29 03:00:00 +02", "2027-03-29 02:30:00 +02"}},
		{"30 * * * *", "Europe/Berlin", "2026-03-29 01:00:00 +01", []string{"2026-03-29 01:30:00 +01", "2026-03-29 03:30:00 +02"}},
		{"0 */2 * * *", "Europe/Berlin", "2026-03-29 00:00:00 +01", []string{"2026-03-29 04:00:00 +02"}},
		{"*/20 2 * * *", "Europe/Berlin", "2026-03-29 00:00:00 +01", []string{"2026-03-30 02:00:00 +02"}},
		{"@every 1h", "Europe/Berlin", "2026-03-29 01:00:00 +01", []string{"2026-03-29 03:00:00 +02", "2026-03-29 04:00:00 +02"}},

		// It is put back on October 25: after 02:59:59 comes 02:00:00 again.
		{"30 2 * * *", "Europe/Berlin", "2026-10-25 00:00:00 +02", []string{"2026-10-25 02:30:00 +02", "2026-10-26 02:30:00 +01"}},
		{"30 2 * * *", "Europe/Berlin", "2026-10-25 02:10:00 +01", []string{"2026-10-26 02:30:00 +01"}},
		{"0 3 * * *", "Europe/Berlin", "2026-10-25 00:00:00 +02", []string{"2026-10-25 03:00:00 +01"}},
		{"0 2 * * *", "Europe/Berlin", "2026-10-25 00:00:00 +02", []string{"2026-10-25 02:00:00 +02", "2026-10-26 02:00:00 +01"}},
		{"30 * * * *", "Europe/Berlin", "2026-10-25 02:00:00 +02", []string{"2026-10-25 02:30:00 +02", "2026-10-25 02:30:00 +01", "2026-10-25 03:30:00 +01"}},
		{"@hourly", "Europe/Berlin", "2026-10-25 01:30:00 +02", []string{"2026-10-25 02:00:00 +02", "2026-10-25 02:00:00 +01", "2026-10-25 03:00:00 +01"}},
		{"*/30 2 * * *", "Europe/Berlin", "2026-10-25 02:00:00 +02", []string{"2026-10-25 02:30:00 +02", "2026-10-25 02:00:00 +01", "2026-10-25 02:30:00 +01"}},

		// Elsewhere it is half an hour, midnight, or a whole day.
		{"15 2 * * *", "Australia/Lord_Howe", "2026-10-03 12:00:00 +1030", []string{"2026-10-04 02:30:00 +11", "2026-10-05 02:15:00 +11"}},
		{"0 0 * * *", "America/Havana", "2026-03-07 12:00:00 -05", []string{"2026-03-08 01:00:00 -04", "2026-03-09 00:00:00 -04"}},
		{"0 12 * * *", "Pacific/Apia", "2011-12-29 12:00:00 -10", []string{"2011-12-31 00:00:00 +14", "2011-12-31 12:00:00 +14"}},
	} {
		layout := form
		if strings.HasSuffix(tt.from, "30") && strings.Contains(tt.from, "+1030") {
			layout = "2006-01-02 15:04:05 -0700"
		}
		at, err := time.Parse(layout, tt.from)
		if err != nil {
			t.Fatal(err)
		}
		e := parse(t, tt.expr, tt.zone)
		for _, want := range tt.want {
			at = e.Next(at)
			if got := at.Format(form); got != want {
				t.Errorf("%s in %s after %s: due at %s, want %s", tt.expr, tt.zone, tt.from, got, want)
				break
			}
		}
	}
}

// Whatever the expression, each time is after the one before and is found from any moment in between. Those that name a time of
// day come on every day.
func TestNextIsOneLine(t *testing.T) {
	t.Parallel()
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kathmandu", "America/Havana"} {
		for _, expr := range []string{"30 2 * * *", "0 0 * * *", "59 1 * * *", "*/50 * * * *", "0 */3 * * *", "15 2,3 * * *", "@every 7h"} {
			e, days := parse(t, expr, zone), map[string]int{}
			at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			for at.Year() == 2026 {
				next := e.Next(at)
				if !next.After(at) {
					t.Fatalf("%s in %s: after %s comes %s", expr, zone, at, next)
				}
				for _, d := range []time.Duration{(next.Sub(at)) / 2, next.Sub(at) - 1} {
					if again := e.Next(at.Add(d)); !again.Equal(next) {
						t.Fatalf("%s in %s: from %s it is %s, from %s it is %s", expr, zone, at, next, at.Add(d), again)
					}
				}
				at = next
				days[at.Format(time.DateOnly)]++
			}
			if expr[0] >= '0' && expr[0] <= '9' && !strings.Contains(expr, ",") && !strings.Contains(expr, "/") {
				for day, n := range days {
					if n != 1 {
						t.Errorf("%s in %s: %d times on %s", expr, zone, n, day)
					}
				}
				if len(days) < 365 {
					t.Errorf("%s in %s: on %d days of the year", expr, zone, len(days))
				}
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for expr, want := range map[string]string{
		"":                             "is empty",
		" \t":                          "is empty",
		"* * * *":                      "has 4 fields; write five",
		"* * * * * * *":                "has 7 fields; write five",
		"0 0 30 2 *":                   "is never due",
		"0 0 31 4,6,9,11 *":            "is never due",
		"60 * * * *":                   "above maximum (59)",
		"0 24 * * *":                   "above maximum (23)",
		"0 0 * * 7":                    "above maximum (6)",
		"0 0 L * *":                    "failed to parse int",
		"*/0 * * * *":                  "step of range should be a positive number",
		"5-1 * * * *":                  "beyond end of range",
		"TZ=":                          "names a time zone",
		"CRON_TZ=Asia/Tokyo * * * * *": "names a time zone",
		"@reboot":                      "is none of @yearly",
		"@daily 5":                     "is none of @yearly",
		"@every":                       "is none of @yearly",
		"@every 0s":                    "want whole seconds, from 1s",
		"@every 1500ms":                "want whole seconds, from 1s",
		"@every -1h":                   "want whole seconds, from 1s",
		"@every 9000h":                 "want whole seconds, from 1s to 8784h",
		"@every day":                   "want whole seconds, from 1s",
		strings.Repeat("1,", 200):      "the most is 256",
	} {
		if _, err := cron.Parse(expr, time.UTC); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", expr, err, want)
		}
	}
	for _, zone := range []string{"Local", "Europe/Berlinn", "../etc/passwd", "CET-1CEST"} {
		if _, err := cron.Zone(zone); err == nil {
			t.Errorf("zone %q is taken", zone)
		}
	}
}

func TestShortest(t *testing.T) {
	t.Parallel()
	for expr, want := range map[string]time.Duration{
		"* * * * * *": time.Second, "@every 90s": 90 * time.Second, "0,5 12 * * *": 5 * time.Minute, "@daily": 24 * time.Hour, "0 0 29 2 *": 366 * 24 * time.Hour,
	} {
		if got := parse(t, expr, "Europe/Berlin").Shortest(); got != want {
			t.Errorf("%s: %s, want %s", expr, got, want)
		}
	}
}

// FuzzParse: what is taken is due again and again, later each time.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"0 30 2 * * *", "*/5 1-3 ? JAN-MAR/2 1", "@every 90s", "@hourly", "TZ=", "0 0 30 2 *", "1-,2 * * * *"} {
		f.Add(s, int64(1774746000), "Europe/Berlin")
	}
	f.Fuzz(func(t *testing.T, expr string, from int64, zone string) {
		loc, err := cron.Zone(zone)
		if err != nil {
			return
		}
		e, err := cron.Parse(expr, loc)
		if err != nil {
			return
		}
		at := time.Unix(from%(1<<33), 0)
		for range 5 {
			next := e.Next(at)
			if !next.After(at) || next.Nanosecond() != 0 {
				t.Fatalf("%q in %s: after %s comes %s", expr, zone, at, next)
			}
			at = next
		}
	})
}

func ExampleExpr_Next() {
	berlin, err := cron.Zone("Europe/Berlin")
	if err != nil {
		panic(err)
	}
	e, err := cron.Parse("30 2 * * *", berlin)
	if err != nil {
		panic(err)
	}
	at := time.Date(2026, 3, 28, 0, 0, 0, 0, berlin)
	for range 3 {
		at = e.Next(at)
		fmt.Println(at)
	}
	// Output:
	// 2026-03-28 02:30:00 +0100 CET
	// 2026-03-29 03:00:00 +0200 CEST
	// 2026-03-30 02:30:00 +0200 CEST
}
