package rediskv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
	"unsafe"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// swap is a transaction of the short kind. Those that are alike and made at the same time go into one script.
type swap struct {
	swapHead
	key, want, load string
	id, add         string // of the ending, where there is one

	// The reply.
	state byte
	head  string
	value string
}

// swapHead is what the transactions of one script have in common.
type swapHead struct {
	names                  *names
	ttl                    time.Duration
	read                   bool
	stream, group, results string // of their endings; "" without
	counts                 string // follows from stream
}

// ending is what a transport in the same Redis has done along with a transaction. redisstream makes such.
type ending interface {
	// Entry is the entry of a stream that is to be acknowledged and deleted, and a hash on its slot that counts such under
	// settled:<group>.
	Entry() (stream, group, id, counts string)
	// Add is a stream that is to get an entry, and what follows its name in XADD as a MessagePack list; "" and "" for none.
	Add() (stream, args string)
}

// isSwap says whether t is what the short script does.
func isSwap(t store.Txn) bool {
	if len(t.Then) != 1 || t.Then[0].Kind != store.OpPut || len(t.If) > 1 || len(t.Read) > 1 {
		return false
	}
	key := t.Then[0].Key
	return (len(t.If) == 0 || t.If[0].Key == key) && (len(t.Read) == 0 || t.Read[0] == key)
}

// swap makes x the swap that t is, in partition n.
func (s *Store) swap(x *swap, n *names, t store.Txn) {
	o := t.Then[0]
	*x = swap{swapHead: swapHead{names: n, ttl: o.TTL, read: len(t.Read) > 0}, key: n.key(o.Key), want: "*"}
	if len(t.If) > 0 {
		x.want = packRevision(t.If[0].Revision)
	}
	load := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(o.Value)), rand.Uint64())
	load = append(load, o.Value...)
	x.load = unsafe.String(unsafe.SliceData(load), len(load)) // nobody else has load
	if e, ok := t.Along.(ending); ok && !x.read && time.Now().UnixNano() >= s.batch.apart.Load() {
		stream, group, id, counts := e.Entry()
		results, add := e.Add()
		if results == "" {
			results = stream
		}
		if s.beside(n, stream) && s.beside(n, results) {
			x.stream, x.group, x.results, x.counts, x.id, x.add = stream, group, results, counts, id, add
		}
	}
}

// beside says whether a stream lies on the slot of partition n.
func (s *Store) beside(n *names, stream string) bool {
	if !s.cluster {
		return true
	}
	_, tag, ok := strings.Cut(stream, "{")
	if tag, _, closed := strings.Cut(tag, "}"); ok && closed && tag != "" {
		return tag == n.tag
	}
	return stream == n.tag
}

// size is about how many bytes are sent for s.
func (s *swap) size() int { return len(s.load) + len(s.add) + 300 }

// swaps are the arguments of a script of swaps. The first two places are for the script itself.
func swaps(calls []*call) []any {
	h := &calls[0].swap.swapHead
	keys, read := 3, "0"
	if h.read {
		read = "1"
	}
	args := append(make([]any, 0, 12+5*len(calls)), nil, nil, nil, h.names.counter, &h.names.watch, &h.names.expiries)
	if h.group != "" {
		keys = 6
		args = append(args, &h.stream, &h.results, &h.counts)
	}
	args[2] = keys + len(calls)
	for _, c := range calls {
		args = append(args, &c.swap.key)
	}
	args = append(args, millis(h.ttl), read, &h.group)
	for _, c := range calls {
		if args = append(args, &c.swap.want, &c.swap.load); h.group != "" {
			args = append(args, &c.swap.id, &c.swap.add)
		}
	}
	return args
}

// readSwaps gives each of calls its part of a script's reply.
func readSwaps(calls []*call, reply any) error {
	all, _ := reply.([]any)
	var states, heads string
	if len(all) >= 2 {
		states, _ = all[0].(string)
		heads, _ = all[1].(string)
		all = all[2:]
	}
	if len(states) != len(calls) || len(heads) != 16*len(calls) {
		return fmt.Errorf("redis answered %T for %d transactions", reply, len(calls))
	}
	for i, c := range calls {
		s := &c.swap
		s.state, s.head = states[i], heads[16*i:16*i+16]
		if s.state == 'o' || s.state == 'v' || s.state == 'e' {
			if len(all) == 0 {
				return fmt.Errorf("redis answered too little for %d transactions", len(calls))
			}
			s.value, _ = all[0].(string)
			all = all[1:]
		}
		if s.state == 'e' {
			c.err = errors.New(s.value)
		}
	}
	return nil
}

// swapped is the answer to t, which s was made of.
func swapped(s *swap, t store.Txn) (store.Reply, error) {
	r := store.Reply{Now: unpackTime(s.head[8:])}
	if s.state != 'c' && s.state != 'v' {
		r.Done, r.Revision, r.Along = true, unpackRevision(s.head), s.state == 'a'
	}
	if !s.read {
		return r, nil
	}
	r.Read = []store.KV{{Key: t.Read[0]}}
	switch {
	case s.state == 'o' || s.state == 'v':
		kv, err := unpackKV(t.Read[0], s.value)
		if err != nil {
			return store.Reply{}, err
		}
		r.Read[0] = kv
	case s.state == 'd' && len(s.want) == 8: // it was done before, and then there was a value
		return store.Reply{}, fmt.Errorf("redis transaction on %q: it was done, and what was read is lost", t.Then[0].Key)
	}
	return r, nil
}

// alike says whether two transactions can be of one script.
func (h *swapHead) alike(o *swapHead) bool {
	return h.names.head == o.names.head && h.ttl == o.ttl && h.read == o.read && h.stream == o.stream && h.group == o.group && h.results == o.results
}
