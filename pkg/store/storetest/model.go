package storetest

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// seedVariable names the environment variable that repeats a run of the model case.
const seedVariable = "STORETEST_SEED"

var modelCases = []testCase{
	{name: "random operations agree with a simple model", run: func(t *testing.T, h Harness) {
		n := rand.Uint64()
		if v := os.Getenv(seedVariable); v != "" {
			var err error
			if n, err = strconv.ParseUint(v, 10, 64); err != nil {
				t.Fatalf("%s: %v", seedVariable, err)
			}
		}
		t.Logf("%s=%d", seedVariable, n)
		s := h.Open(t)
		stores := []store.Store{s}
		if h.Reopen != nil {
			stores = append(stores, h.Reopen(t, s))
		}
		m := &model{rnd: rand.New(rand.NewPCG(n, 7)), keys: map[string]store.KV{}, sets: map[string]map[string]int64{}}
		for step := range 600 {
			s := stores[m.rnd.IntN(len(stores))]
			if err := m.step(t, s); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
		}
	}},
}

// model is the contract in its simplest form: two maps.
type model struct {
	rnd  *rand.Rand
	last int64
	old  []int64 // revisions that were seen, current and stale
	keys map[string]store.KV
	sets map[string]map[string]int64
}

func (m *model) key() string { return fmt.Sprintf("p/k%d", m.rnd.IntN(12)) }

func (m *model) set() string { return fmt.Sprintf("p/s%d", m.rnd.IntN(2)) }

func (m *model) score() int64 {
	return []int64{math.MinInt64, -1, 0, 1, int64(m.rnd.IntN(5)), math.MaxInt64}[m.rnd.IntN(6)]
}

func (m *model) step(t *testing.T, s store.Store) error {
	if m.rnd.IntN(4) == 0 {
		return m.ranges(t, s)
	}
	x := m.txn()
	r, err := s.Txn(t.Context(), x)
	if err != nil {
		return err
	}
	want := true
	for _, c := range x.If {
		want = want && m.keys[c.Key].Revision == c.Revision
	}
	if r.Done != want {
		return fmt.Errorf("transaction %+v: done is %v, want %v", x, r.Done, want)
	}
	for i, k := range x.Read {
		got, kv := r.Read[i], m.keys[k]
		if got.Key != k || got.Revision != kv.Revision || string(got.Value) != string(kv.Value) {
			return fmt.Errorf("transaction %+v: read %s, want %s", x, show(got), show(kv))
		}
	}
	if !r.Done || len(x.Then) == 0 {
		return nil
	}
	if r.Revision <= m.last {
		return fmt.Errorf("transaction %+v: revision %d after %d", x, r.Revision, m.last)
	}
	m.last = r.Revision
	m.old = append(m.old, r.Revision)
	for _, o := range x.Then {
		switch o.Kind {
		case store.OpPut:
			m.keys[o.Key] = store.KV{Key: o.Key, Value: o.Value, Revision: r.Revision}
		case store.OpDelete:
			delete(m.keys, o.Key)
		case store.OpAdd:
			if m.sets[o.Key] == nil {
				m.sets[o.Key] = map[string]int64{}
			}
			m.sets[o.Key][o.Member] = o.Score
		case store.OpRemove:
			delete(m.sets[o.Key], o.Member)
		}
	}
	return nil
}

func (m *model) txn() store.Txn {
	var x store.Txn
	for range m.rnd.IntN(3) {
		k := m.key()
		rev := m.keys[k].Revision
		switch m.rnd.IntN(6) {
		case 0:
			rev = 0
		case 1:
			if len(m.old) > 0 {
				rev = m.old[m.rnd.IntN(len(m.old))]
			}
		}
		x.If = append(x.If, store.Cond{Key: k, Revision: rev})
	}
	used := map[string]bool{}
	for range m.rnd.IntN(4) {
		var o store.Op
		switch m.rnd.IntN(6) {
		case 0:
			o = store.Delete(m.key())
		case 1, 2:
			o = store.Add(m.set(), fmt.Sprintf("m%d", m.rnd.IntN(30)), m.score())
		case 3:
			o = store.Remove(m.set(), fmt.Sprintf("m%d", m.rnd.IntN(30)))
		default:
			ttl := time.Duration(m.rnd.IntN(2)) * time.Hour
			o = store.Put(m.key(), fmt.Appendf(nil, "v%d", m.rnd.IntN(1000)), ttl)
		}
		if id := o.Key + "\x00" + o.Member; !used[id] {
			used[id] = true
			x.Then = append(x.Then, o)
		}
	}
	for range m.rnd.IntN(3) {
		x.Read = append(x.Read, m.key())
	}
	if len(x.If)+len(x.Then)+len(x.Read) == 0 {
		x.Read = []string{m.key()}
	}
	return x
}

func (m *model) ranges(t *testing.T, s store.Store) error {
	r := store.Range{Set: m.set(), Min: m.score(), Max: m.score(), Limit: m.rnd.IntN(20), Reverse: m.rnd.IntN(2) == 0}
	if m.rnd.IntN(3) == 0 {
		r.After = fmt.Sprintf("m%d", m.rnd.IntN(30))
	}
	got, err := s.Range(t.Context(), r)
	if err != nil {
		return err
	}
	var want []store.Member
	for n, v := range m.sets[r.Set] {
		if v < r.Min || v > r.Max {
			continue
		}
		if r.After != "" && (!r.Reverse && v == r.Min && n <= r.After || r.Reverse && v == r.Max && n >= r.After) {
			continue
		}
		want = append(want, store.Member{Name: n, Score: v})
	}
	slices.SortFunc(want, func(a, b store.Member) int {
		c := cmp.Or(cmp.Compare(a.Score, b.Score), cmp.Compare(a.Name, b.Name))
		if r.Reverse {
			return -c
		}
		return c
	})
	if r.Limit > 0 && len(want) > r.Limit {
		want = want[:r.Limit]
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("range %+v: %v, want %v", r, got, want)
	}
	return nil
}
