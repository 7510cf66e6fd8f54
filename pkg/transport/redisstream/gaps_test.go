package redisstream

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// What is lost and what is not, told from a stream's counts alone. Each step is followed by a look; want is what they count together.
func TestGaps(t *testing.T) {
	t.Parallel()
	addr := services.Redis(t)
	c := client(t, addr)
	type world struct {
		t      *testing.T
		tr     *Transport
		stream string
	}
	do := func(w world, args ...any) {
		w.t.Helper()
		if err := c.Do(t.Context(), args...).Err(); err != nil && !isNil(err) {
			w.t.Fatalf("%v: %v", args, err)
		}
	}
	add := func(n int) func(world) {
		return func(w world) {
			for i := range n {
				do(w, "xadd", w.stream, "*", "body", i)
			}
		}
	}
	trim := func(keep int) func(world) { return func(w world) { do(w, "xtrim", w.stream, "maxlen", keep) } }
	read := func(group string, n int) func(world) {
		return func(w world) { do(w, "xreadgroup", "group", group, "c", "count", n, "streams", w.stream, ">") }
	}
	// settle does what the source does with the first n of what is pending, or with the last.
	settle := func(n int, last bool) func(world) {
		return func(w world) {
			var ids []any
			for _, p := range c.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: w.stream, Group: "workers", Start: "-", End: "+", Count: 1000}).Val() {
				ids = append(ids, p.ID)
			}
			if last {
				ids = ids[len(ids)-n:]
			}
			k := keysOf(w.stream)
			if err := settleScript.Run(t.Context(), c, []string{k.stream, k.count}, append([]any{"workers"}, ids[:n]...)...).Err(); err != nil && !isNil(err) {
				w.t.Fatal(err)
			}
		}
	}
	command := func(args ...any) func(world) {
		return func(w world) {
			args := append([]any{}, args...)
			for i := range args {
				if args[i] == "STREAM" {
					args[i] = w.stream
				}
			}
			do(w, args...)
		}
	}
	for name, tc := range map[string]struct {
		before []func(world) // before the group is made
		steps  []func(world)
		want   int64
		log    string
	}{
		"nothing":                       {nil, []func(world){add(10), read("workers", 5), settle(5, false)}, 0, ""},
		"settled out of order":          {nil, []func(world){add(10), read("workers", 8), settle(3, true), read("workers", 1), settle(2, true), settle(2, false)}, 0, ""},
		"trimmed before it is read":     {nil, []func(world){add(30), trim(10)}, 20, "XTRIM"},
		"trimmed with what is pending":  {nil, []func(world){add(30), read("workers", 5), trim(10)}, 15, ""},
		"and that is done all the same": {nil, []func(world){add(30), read("workers", 5), trim(10), settle(5, false)}, 15, ""},
		"and that is found missing": {nil, []func(world){
			add(30), read("workers", 5), trim(10),
			command("xautoclaim", "STREAM", "workers", "d", 0, "0"),
		}, 20, ""},
		"only some of what is pending": {nil, []func(world){
			add(30), read("workers", 20), trim(15),
			command("xautoclaim", "STREAM", "workers", "d", 0, "0"),
		}, 15, ""},
		"after some were settled, the last first": {nil, []func(world){add(30), read("workers", 10), settle(3, true), trim(5)}, 15, ""},
		"all of it":                     {nil, []func(world){add(30), read("workers", 10), settle(10, false), trim(0)}, 20, ""},
		"again and again":               {nil, []func(world){add(30), trim(10), add(10), read("workers", 5), trim(4), add(100), trim(1)}, 20 + 11 + 103, ""},
		"before the group was there":    {[]func(world){add(30), trim(10)}, []func(world){read("workers", 3)}, 0, ""},
		"old entries, all read":         {[]func(world){add(30)}, []func(world){trim(10)}, 20, ""},
		"a group that began at the end": {[]func(world){add(30), command("xgroup", "create", "STREAM", "workers", "$")}, []func(world){trim(10), add(5), trim(5)}, 0, ""},
		"and then loses": {
			[]func(world){add(30), command("xgroup", "create", "STREAM", "workers", "$")},
			[]func(world){trim(10), add(5), trim(2)}, 3, "",
		},
		"and loses at once": {
			[]func(world){add(30), command("xgroup", "create", "STREAM", "workers", "$")},
			[]func(world){add(5), trim(2)}, 3, "",
		},
		"left by who does not delete": {
			[]func(world){add(30), command("xgroup", "create", "STREAM", "workers", "0"), read("workers", 10), func(w world) {
				for _, p := range c.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: w.stream, Group: "workers", Start: "-", End: "+", Count: 10}).Val() {
					do(w, "xack", w.stream, "workers", p.ID)
				}
			}},
			[]func(world){trim(25), trim(20)}, 0, "",
		},
		"how many is not known": {
			[]func(world){
				add(30), command("xgroup", "create", "STREAM", "workers", "0"), read("workers", 10), func(w world) {
					for _, p := range c.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: w.stream, Group: "workers", Start: "-", End: "+", Count: 10}).Val() {
						do(w, "xack", w.stream, "workers", p.ID)
					}
					do(w, "xdel", w.stream, c.XRange(t.Context(), w.stream, "-", "+").Val()[20].ID) // now the server does not know what waits
				},
			},
			[]func(world){trim(5)}, 0, "how many is not known",
		},
		"an idle group beside it":  {[]func(world){command("xgroup", "create", "STREAM", "idle", "0", "mkstream")}, []func(world){add(30), read("workers", 10), settle(10, true), trim(5)}, 15, ""},
		"a group that reads along": {[]func(world){command("xgroup", "create", "STREAM", "audit", "0", "mkstream")}, []func(world){add(30), read("audit", 30), read("workers", 10), settle(10, true), trim(5)}, 15, ""},
		"two groups that delete": {
			[]func(world){command("xgroup", "create", "STREAM", "others", "0", "mkstream"), func(w world) { do(w, "hincrby", keysOf(w.stream).count, "settled:others", 0) }},
			[]func(world){add(30), read("workers", 10), settle(10, true), trim(5)}, 0, "",
		},
		"discarded":   {nil, []func(world){add(10), func(w world) { discardAll(w.t, w.tr, w.stream) }}, 0, ""},
		"made again":  {nil, []func(world){add(30), read("workers", 10), settle(10, false), command("del", "STREAM"), command("xgroup", "create", "STREAM", "workers", "0", "mkstream"), add(5)}, 0, ""},
		"counts gone": {nil, []func(world){add(30), read("workers", 10), settle(10, false), func(w world) { do(w, "del", keysOf(w.stream).count) }, add(5)}, 0, ""},
		"group gone":  {nil, []func(world){add(30), read("workers", 10), settle(4, false), command("xgroup", "destroy", "STREAM", "workers"), command("xgroup", "create", "STREAM", "workers", "0")}, 0, ""},
		"deleted by hand": {nil, []func(world){add(3), func(w world) {
			do(w, "xdel", w.stream, c.XRange(t.Context(), w.stream, "-", "+").Val()[1].ID)
		}}, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			w := world{t, open(t, c, func(cfg *Config) { cfg.Log = slog.New(slog.NewTextHandler(&log, nil)) }), services.UniqueName(t)}
			for _, step := range tc.before {
				step(w)
			}
			if err := w.tr.Prepare(t.Context(), transport.Subjects{Sources: []string{w.stream}}); err != nil {
				t.Fatal(err)
			}
			for _, step := range append(tc.steps, func(world) {}) { // nothing more is counted by another look
				step(w)
				if err := w.tr.look(t.Context(), w.stream, false); err != nil {
					t.Fatal(err)
				}
			}
			if n := w.tr.Losses().Gaps; n != tc.want {
				t.Errorf("%d entries are counted, want %d\n%s", n, tc.want, &log)
			}
			if !strings.Contains(log.String(), tc.log) {
				t.Errorf("the log does not say %q:\n%s", tc.log, &log)
			}
		})
	}
}

func discardAll(t *testing.T, tr *Transport, stream string) {
	t.Helper()
	b, err := tr.Browse(t.Context(), stream, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := b.Next(t.Context())
		if err != nil {
			return
		}
		if err := tr.Discard(t.Context(), stream, m); err != nil {
			t.Fatal(err)
		}
	}
}

// An answer that was lost on its way is given again, and counted once.
func TestGapAnsweredAgain(t *testing.T) {
	t.Parallel()
	c := client(t, services.Redis(t))
	tr, stream := open(t, c), services.UniqueName(t)
	if err := tr.Prepare(t.Context(), transport.Subjects{Sources: []string{stream}}); err != nil {
		t.Fatal(err)
	}
	for range 7 {
		xadd(t, c, stream, "body", "b")
	}
	if err := c.XTrimMaxLen(t.Context(), stream, 2).Err(); err != nil {
		t.Fatal(err)
	}
	k := keysOf(stream)
	if n, err := gapScript.Run(t.Context(), c, []string{k.stream, k.count}, tr.cfg.Group, tr.callOf(stream), 0).Int(); n != 5 || err != nil {
		t.Fatalf("answer %d, %v", n, err) // which nobody hears
	}
	for range 2 {
		if err := tr.look(t.Context(), stream, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := tr.Losses().Gaps; n != 5 {
		t.Errorf("%d entries are counted, want 5", n)
	}
}

// A job that runs while its entry is trimmed is extended, settled, and no loss; one whose owner falls silent is lost, is taken off the
// group's list, and holds up nobody.
func TestTrimmedWhilePending(t *testing.T) {
	t.Parallel()
	c := client(t, services.Redis(t))
	stream, lease := services.UniqueName(t), 2*time.Second
	tr, silent := open(t, c), open(t, c)
	src := openSource(t, tr, stream, lease)
	publish(t, tr, msg(stream, "runs"), msg(stream, "runs too"))
	ds := fetch(t, src, 2)
	gone := openSource(t, silent, stream, lease)
	publish(t, tr, msg(stream, "is lost"))
	left := fetch(t, gone, 1)
	_ = left
	publish(t, tr, msg(stream, "waits"))
	if err := c.XTrimMaxLen(t.Context(), stream, 1).Err(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := src.Extend(t.Context(), ds); err != nil || ds[0].Lost() || ds[1].Lost() {
			t.Fatalf("extend %d: %v, lost %v and %v", i, err, ds[0].Lost(), ds[1].Lost())
		}
	}
	for _, d := range ds {
		d.Ack()
	}
	for _, d := range fetch(t, src, 1) {
		if string(d.Message().Body) != "waits" {
			t.Errorf("%q came", d.Message().Body)
		}
		d.Ack()
	}
	empty(t, c, stream)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	eventually(t, "the entry of the silent one is counted", func() bool {
		fctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		if ds, err := src.Fetch(fctx, 1); len(ds) > 0 || err != nil && fctx.Err() == nil {
			t.Fatalf("%d deliveries, %v", len(ds), err)
		}
		return tr.Losses().Gaps+silent.Losses().Gaps == 1
	})
	if p := c.XPending(t.Context(), stream, "workers").Val(); p.Count != 0 {
		t.Errorf("%d entries are still on the group's list", p.Count)
	}
	for _, tr := range []*Transport{tr, silent} {
		if err := tr.look(t.Context(), stream, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := fmt.Sprint(tr.Losses().Gaps + silent.Losses().Gaps); n != "1" {
		t.Errorf("%s are counted, want 1", n)
	}
}
