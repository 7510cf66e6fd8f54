// Package cron reads cron expressions and says when they are due, in a time zone and across its changes of the clock. It knows
// nothing of who fires, and of no clock.
//
// An expression has five fields (minute, hour, day of month, month, day of week) or six, seconds first. Fields are as crontab(5)
// has them: numbers, names of months and days, *, lists, ranges and steps; Sunday is 0; where both days are restricted, either will
// do. @yearly, @monthly, @weekly, @daily and @hourly stand for such expressions. @every with a duration is due at the multiples of that
// duration since 1970 in UTC, so that everybody agrees on them.
//
// When the clock is put forward or back, what names a time of day is due once on that day: at the moment of the change where its
// time is left out, at the first of the two where its time comes twice. What has a * in its seconds, minutes or hours, */2 included,
// follows the clock's hands: nothing is due in what is left out, and what comes twice is due twice.
package cron

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // zones mean the same on machines that have no database of them

	robfig "github.com/robfig/cron/v3"
)

// Expr is an expression in a time zone. It is immutable and may be used by many goroutines at once.
type Expr struct {
	every time.Duration // of @every; else 0
	wall  robfig.Schedule
	loc   *time.Location
	hands bool // follows the clock's hands
}

// named are the expressions that have a name.
var named = map[string]string{
	"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
	"@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}

// maxEvery is the longest duration of @every; what is due more rarely has a date.
const maxEvery = 366 * 24 * time.Hour

// maxLen is the longest expression in bytes.
const maxLen = 256

// Zone returns the time zone of that name in the IANA database; "" is UTC. Local is refused: it is another one on each machine.
func Zone(name string) (*time.Location, error) {
	if name == "Local" {
		return nil, errors.New(`"Local" is another zone on each machine; name one, such as Europe/Berlin`)
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("%q is no time zone; write one of the IANA database, such as Europe/Berlin, or UTC", name)
	}
	return loc, nil
}

// Parse reads an expression. One that is never due, such as February 30, is an error.
func Parse(expr string, loc *time.Location) (*Expr, error) {
	if len(expr) > maxLen {
		return nil, fmt.Errorf("the expression has %d bytes; the most is %d", len(expr), maxLen)
	}
	fields := strings.Fields(expr)
	if len(fields) == 0 {
		return nil, errors.New(`is empty; write five fields or six, such as "0 30 2 * * *"`)
	}
	if strings.HasPrefix(fields[0], "@") {
		if fields[0] == "@every" && len(fields) == 2 {
			return parseEvery(fields[1], loc)
		}
		full, ok := named[fields[0]]
		if !ok || len(fields) > 1 {
			return nil, fmt.Errorf("%q is none of @yearly, @monthly, @weekly, @daily, @hourly and @every DURATION", expr)
		}
		fields = strings.Fields(full)
	}
	if strings.Contains(fields[0], "=") {
		return nil, fmt.Errorf("%q names a time zone; that has a key of its own", fields[0])
	}
	if len(fields) != 5 && len(fields) != 6 {
		return nil, fmt.Errorf("%q has %d fields; write five (minute, hour, day of month, month, day of week) or six, seconds first", expr, len(fields))
	}
	parser := robfig.NewParser(robfig.SecondOptional | robfig.Minute | robfig.Hour | robfig.Dom | robfig.Month | robfig.Dow)
	wall, err := parser.Parse(strings.Join(fields, " "))
	if err != nil {
		return nil, fmt.Errorf("%q: %w", expr, err)
	}
	spec, ok := wall.(*robfig.SpecSchedule)
	if !ok {
		return nil, fmt.Errorf("%q is no expression of fields", expr)
	}
	spec.Location = time.UTC // hands are read as if of a clock that is never put forward or back
	e := &Expr{wall: spec, loc: loc}
	for _, f := range fields[:len(fields)-3] {
		e.hands = e.hands || f[0] == '*' || f[0] == '?'
	}
	if e.nextWall(reference).IsZero() {
		return nil, fmt.Errorf("%q is never due: no month of it has such a day", expr)
	}
	return e, nil
}

func parseEvery(text string, loc *time.Location) (*Expr, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second || d%time.Second != 0 || d > maxEvery {
		return nil, fmt.Errorf("@every %s: want whole seconds, from 1s to %dh, such as 90s or 1h30m", text, maxEvery/time.Hour)
	}
	return &Expr{every: d, loc: loc}, nil
}

// reference is when the search for something due begins, where it does not matter when.
var reference = time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)

// Next returns the first time after t at which the expression is due, in its zone.
func (e *Expr) Next(t time.Time) time.Time {
	if e.every > 0 {
		n, s := int64(e.every/time.Second), t.Unix()
		return time.Unix(s-(s%n+n)%n+n, 0).In(e.loc)
	}
	// Between two changes of the clock its hands and time run alike; each turn of the loop looks at one such stretch.
	t = t.In(e.loc)
	for after := hands(t); ; {
		start, end := stretch(t)
		ahead := offset(t)
		if !e.hands && !start.IsZero() {
			if shown := start.UTC().Add(offset(start.Add(-1)) - 1); after.Before(shown) {
				after = shown // the hands come here for the second time
			}
		}
		due := e.nextWall(after).Add(-ahead).In(e.loc)
		switch {
		case end.IsZero() || due.Before(end):
			return due
		case !e.hands && due.Before(end.Add(offset(end)-ahead)): // where the hands jump over it
			return end
		}
		t, after = end, hands(end).Add(-1)
	}
}

// stretch returns from when on and until when the clock's hands and time run alike around t. Zero times stand for no change.
func stretch(t time.Time) (start, end time.Time) {
	start, end = t.ZoneBounds()
	for !end.IsZero() && !end.After(t) {
		// Beyond the changes that are listed in the database the bounds end with the year, which is taken to have 365 days.
		end = end.Add(24 * time.Hour)
	}
	return start, end
}

// nextWall returns what the clock's hands show, as if in UTC, when the expression is due after at.
func (e *Expr) nextWall(at time.Time) time.Time {
	for range 3 { // the search gives up after five years, and eight can lie between two February 29
		if next := e.wall.Next(at); !next.IsZero() {
			return next
		}
		at = time.Date(at.Year()+4, 1, 1, 0, 0, -1, 0, time.UTC)
	}
	return time.Time{}
}

// hands is what the clock shows at t in t's zone, as if in UTC.
func hands(t time.Time) time.Time { return t.UTC().Add(offset(t)) }

// offset is how far t's zone is ahead of UTC at t.
func offset(t time.Time) time.Duration {
	_, s := t.Zone()
	return time.Duration(s) * time.Second
}

// Shortest returns the least time between two times that are due one after the other, as far as the first 400 of them show.
func (e *Expr) Shortest() time.Duration {
	if e.every > 0 {
		return e.every
	}
	least, last := maxEvery, e.nextWall(reference)
	for range 400 {
		next := e.nextWall(last)
		least, last = min(least, next.Sub(last)), next
	}
	return least
}
