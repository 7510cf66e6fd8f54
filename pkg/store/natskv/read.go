package natskv

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// entry is a key as it lies in the stream. One that was deleted has a sequence still, and no revision.
type entry struct {
	seq int64
	kv  store.KV
}

// read reads all keys that t names in If and Read, as they stood at one moment.
//
// Where one server has the stream, it answers for all keys at once and writes nothing meanwhile. Where several have it, only
// the leader is asked, for one key after the other, and all of them again: revisions never come back, so if none has changed, all of
// them stood like this together between the first pass and the second.
func (s *Store) read(ctx context.Context, t store.Txn) (map[string]entry, error) {
	keys := make([]string, 0, len(t.If)+len(t.Read))
	for _, c := range t.If {
		keys = append(keys, c.Key)
	}
	keys = append(keys, t.Read...)
	slices.Sort(keys)
	keys = slices.Compact(keys)
	switch {
	case len(keys) == 0:
		return nil, nil
	case s.direct.Load() && len(keys) == 1:
		return s.readOne(ctx, keys[0])
	case s.direct.Load():
		return s.readAll(ctx, keys)
	}
	found, err := s.readLeader(ctx, keys)
	if err != nil || len(keys) == 1 {
		return found, err
	}
	for {
		again, err := s.readLeader(ctx, keys)
		if err != nil {
			return nil, err
		}
		same := true
		for k, e := range again {
			same = same && found[k].seq == e.seq
		}
		if same {
			return again, nil
		}
		found = again
	}
}

func (s *Store) readOne(ctx context.Context, key string) (map[string]entry, error) {
	replies, err := s.request(ctx, nil, &nats.Msg{Subject: "$JS.API.DIRECT.GET." + s.cfg.Stream + "." + s.keySubject(key)})
	if err != nil {
		return nil, err
	}
	m := replies[0]
	switch code := status(m); code {
	case "404":
		return map[string]entry{key: {kv: store.KV{Key: key}}}, nil
	case "":
	default:
		return nil, fmt.Errorf("read %q: %s %s", key, code, m.Header.Get("Description"))
	}
	e, err := s.directEntry(key, m)
	return map[string]entry{key: e}, err
}

func (s *Store) readAll(ctx context.Context, keys []string) (map[string]entry, error) {
	var req struct {
		MultiLast []string `json:"multi_last"`
	}
	found := make(map[string]entry, len(keys))
	bySubject := make(map[string]string, len(keys))
	for _, k := range keys {
		subject := s.keySubject(k)
		req.MultiLast = append(req.MultiLast, subject)
		bySubject[subject] = k
		found[k] = entry{kv: store.KV{Key: k}}
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	more := func(m *nats.Msg) bool { return status(m) == "" }
	replies, err := s.request(ctx, more, &nats.Msg{Subject: "$JS.API.DIRECT.GET." + s.cfg.Stream, Data: body})
	if err != nil {
		return nil, err
	}
	last := replies[len(replies)-1]
	switch code := status(last); code {
	case "404":
		if last.Header.Get("Description") == "No Results" {
			return found, nil
		}
		return s.readAll(ctx, keys) // one of them expired while they were read
	case "204":
		if n := last.Header.Get("Nats-Num-Pending"); n != "0" && n != "" {
			return nil, fmt.Errorf("read %d keys: the server left out %s of them: read fewer or smaller ones", len(keys), n)
		}
	default:
		return nil, fmt.Errorf("read %d keys: %s %s", len(keys), code, last.Header.Get("Description"))
	}
	for _, m := range replies[:len(replies)-1] {
		key := bySubject[m.Header.Get("Nats-Subject")]
		if found[key], err = s.directEntry(key, m); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// directEntry makes an entry of a message that was read directly: what it was published with is its header, what the stream adds comes
// in headers, too.
func (s *Store) directEntry(key string, m *nats.Msg) (entry, error) {
	seq, err := strconv.ParseInt(m.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		return entry{}, fmt.Errorf("read %q: sequence: %w", key, err)
	}
	at, err := time.Parse(time.RFC3339Nano, m.Header.Get("Nats-Time-Stamp"))
	if err != nil {
		return entry{}, fmt.Errorf("read %q: time: %w", key, err)
	}
	return s.entry(key, seq, at, m.Header, m.Data), nil
}

func (s *Store) readLeader(ctx context.Context, keys []string) (map[string]entry, error) {
	found := make(map[string]entry, len(keys))
	for _, k := range keys {
		e, err := s.leaderEntry(ctx, k)
		if err != nil {
			return nil, err
		}
		found[k] = e
	}
	return found, nil
}

func (s *Store) leaderEntry(ctx context.Context, key string) (entry, error) {
	m, err := s.lastMessage(ctx, s.keySubject(key))
	if err != nil {
		return entry{}, err
	}
	if m.Seq == 0 {
		return entry{kv: store.KV{Key: key}}, nil
	}
	var header nats.Header
	if len(m.Hdrs) > 0 {
		if header, err = nats.DecodeHeadersMsg(m.Hdrs); err != nil {
			return entry{}, fmt.Errorf("read %q: %w", key, err)
		}
	}
	return s.entry(key, m.Seq, m.Time, header, m.Data), nil
}

// stored is a message as the leader tells it.
type stored struct {
	Seq  int64     `json:"seq"`
	Hdrs []byte    `json:"hdrs"`
	Data []byte    `json:"data"`
	Time time.Time `json:"time"`
}

// lastMessage asks the leader for the last message of a subject, which may have wildcards. Where there is none its sequence is 0.
func (s *Store) lastMessage(ctx context.Context, subject string) (stored, error) {
	body, err := json.Marshal(map[string]string{"last_by_subj": subject})
	if err != nil {
		return stored{}, err
	}
	replies, err := s.request(ctx, nil, &nats.Msg{Subject: "$JS.API.STREAM.MSG.GET." + s.cfg.Stream, Data: body})
	if err != nil {
		return stored{}, err
	}
	var r struct {
		Error   *apiError `json:"error"`
		Message stored    `json:"message"`
	}
	if err := json.Unmarshal(replies[0].Data, &r); err != nil {
		return stored{}, fmt.Errorf("read %q: %w", subject, err)
	}
	switch {
	case r.Error == nil:
		return r.Message, nil
	case r.Error.ErrCode == codeStreamNotFound:
		return stored{}, s.away(r.Error)
	case r.Error.Code == 404:
		return stored{}, nil
	}
	return stored{}, r.Error
}

// entry makes an entry of a message.
func (s *Store) entry(key string, seq int64, at time.Time, h nats.Header, data []byte) entry {
	s.clock.saw(at)
	e := entry{seq: seq, kv: store.KV{Key: key}}
	if h.Get(headerOperation) != "" {
		return e
	}
	e.kv.Revision, e.kv.Modified, e.kv.Value = putRevision(seq+ahead(h)), at, data
	return e
}

// ahead returns how many messages of its transaction follow one.
func ahead(h nats.Header) int64 {
	n, err := strconv.ParseInt(h.Get(headerAhead), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
