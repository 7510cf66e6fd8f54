package natskv

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

const (
	// remakePause lies between the first look that misses the stream and its making: nats-server 2.15.2 crashes when a stream is
	// made while one of the same name is still being deleted.
	remakePause = time.Second
	// lookPause lies between two looks at the stream, lookMissing between those for one that is missing and may not be made.
	lookPause   = 200 * time.Millisecond
	lookMissing = time.Second
	// lookTimeout bounds a look.
	lookTimeout = 5 * time.Second
	// sequenceEpoch is when sequences begin, the start of 2020 in microseconds of Unix time.
	sequenceEpoch = 1_577_836_800_000_000
	// sequenceRoom is how far a stream that is made again begins above all that was seen of the old one.
	sequenceRoom = 1 << 20
)

var errReplaced = errors.New("the store's stream was deleted before it answered")

// keeper watches over the stream itself, which anybody may delete and make again while the store is open. Sequences must not come
// again then, or an owner of the past would pass for one of the present: so a stream that is made counts from the microseconds since
// 2020, of which no stream writes one message each, and one that others made is taken only if it counts on.
type keeper struct {
	wanted chan struct{} // has an element when the stream is to be looked at
	// trouble says what is wrong with the stream, nil while nothing is.
	trouble atomic.Pointer[trouble]
	top     atomic.Int64 // the highest sequence seen

	mu      sync.Mutex
	created int64 // when the stream in use was made, by which streams of one name are told apart
	known   int64 // a sequence that it has reached for certain, or its first
}

// trouble is what is wrong with the stream.
type trouble struct {
	err   error
	fatal bool // the stream that is there may not be used
}

// saw takes note of a sequence of the stream.
func (k *keeper) saw(seq int64) {
	for {
		old := k.top.Load()
		if seq <= old || k.top.CompareAndSwap(old, seq) {
			return
		}
	}
}

// first is where a stream that is made begins to count.
func (k *keeper) first() int64 {
	first := time.Now().UnixMicro() - sequenceEpoch
	if top := k.top.Load(); top > 0 {
		first = max(first, top+sequenceRoom)
	}
	return max(first, 1)
}

// same says whether a stream that was made then is the one in use.
func (k *keeper) same(created time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return created.UnixNano() == k.created
}

// want has the stream looked at soon.
func (k *keeper) want() {
	select {
	case k.wanted <- struct{}{}:
	default:
	}
}

// config is what the stream is made like.
func (s *Store) config() jetstream.StreamConfig {
	c := jetstream.StreamConfig{
		Name:        s.cfg.Stream,
		Description: "state of wasmsidecar",
		Subjects:    []string{s.cfg.Prefix + ".>"},
		Storage:     jetstream.FileStorage,
		Replicas:    s.cfg.Replicas,
		MaxBytes:    s.cfg.MaxBytes,
		Discard:     jetstream.DiscardNew, // nothing makes room by itself
		AllowDirect: s.cfg.Replicas == 1,
		FirstSeq:    uint64(s.keeper.first()),
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = -1
	}
	if s.cfg.Memory {
		c.Storage = jetstream.MemoryStorage
	}
	return c
}

// create makes the stream, or checks that the one that is there will do. It looks first: a stream that is there needs no permission to
// create it.
func (s *Store) create(ctx context.Context) error {
	_, err := s.look(ctx)
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	if s.cfg.NoCreate {
		return fmt.Errorf("%w: %w", s.missing(), store.ErrUnsupported)
	}
	return s.make(ctx)
}

// make makes the stream; another process may be faster.
func (s *Store) make(ctx context.Context) error {
	_, err := s.js.CreateStream(ctx, s.config())
	if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return err
	}
	_, err = s.look(ctx)
	return err
}

// missing says what to do about a stream that may not be made here.
func (s *Store) missing() error {
	return fmt.Errorf("stream %q is missing and nats.create is false; make it with subjects %q, discard new, allow_direct and "+
		"first_seq %d, or set nats.create", s.cfg.Stream, s.cfg.Prefix+".>", s.keeper.first())
}

// fits says why a stream will not do.
func (s *Store) fits(got jetstream.StreamConfig) error {
	subject := s.cfg.Prefix + ".>"
	switch {
	case got.MaxMsgsPerSubject > 0 || got.MaxMsgs > 0 || got.Discard != jetstream.DiscardNew || got.MaxAge != 0:
		return errors.New("it does not keep every message for good: delete it, or name another")
	case got.Retention != jetstream.LimitsPolicy || got.DenyPurge:
		return errors.New("it does not have limits retention, or cannot be purged: delete it, or name another")
	case len(got.Subjects) != 1 || got.Subjects[0] != subject:
		return fmt.Errorf("its subjects are %v: want %v", got.Subjects, []string{subject})
	}
	return nil
}

// look asks for the stream, and turns to it if it is another one than before.
func (s *Store) look(ctx context.Context) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	stream, err := s.js.Stream(ctx, s.cfg.Stream)
	if err != nil {
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			s.keeper.want()
		}
		return nil, err
	}
	info := stream.CachedInfo()
	return info, s.use(info)
}

// use checks a stream that was found, and turns to it if it is another one than before.
func (s *Store) use(info *jetstream.StreamInfo) error {
	k := &s.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	created, last := info.Created.UnixNano(), int64(info.State.LastSeq)
	if created == k.created {
		k.known = max(k.known, last)
		k.trouble.Store(nil)
		s.mu.Lock()
		s.st.purged(info.State.FirstSeq - 1) // perhaps by another process
		s.mu.Unlock()
		return nil
	}
	again := k.created != 0
	err := s.fits(info.Config)
	first := int64(max(info.Config.FirstSeq, 1))
	if err == nil && again && first <= k.known { // what was seen above may be of either
		err = fmt.Errorf("it was made again and counts from %d, but %d was reached before, so that revisions would come again: delete it "+
			"and make it with first_seq %d, or stop all sidecars that use it and start them anew", first, k.known, k.first())
	}
	if err != nil {
		if again {
			s.troubled(fmt.Errorf("stream %q cannot be used: %w", s.cfg.Stream, err), true)
		}
		return err
	}
	s.direct.Store(info.Config.AllowDirect && info.Config.Replicas == 1)
	s.limit.Store(info.Config.MaxBytes)
	k.created, k.known = created, max(first, last)
	k.saw(last)
	if again {
		s.mu.Lock()
		s.st.ready = false // nothing is answered from what was
		s.mu.Unlock()
		s.mux.epoch.Add(1)         // the consumer begins anew
		s.mux.failAll(errReplaced) // the old stream answers no more
		s.cfg.Log.Error("the store's stream was deleted and is made again: recorded outcomes, claims and listings are gone, so a job that "+
			"is delivered again runs again", "stream", s.cfg.Stream)
	}
	k.trouble.Store(nil)
	return nil
}

// troubled notes what is wrong with the stream, once in the log. What waits for an answer waits in vain.
func (s *Store) troubled(err error, fatal bool) {
	if s.keeper.trouble.Swap(&trouble{err: err, fatal: fatal}) == nil {
		s.mux.failAll(err)
		s.cfg.Log.Error("the stream of the store", "stream", s.cfg.Stream, "err", err)
	}
}

// keepStream looks at the stream whenever somebody misses it, and makes it again if that may be, until the store is closed.
func (s *Store) keepStream() {
	for {
		select {
		case <-s.keeper.wanted:
		case <-s.ctx.Done():
			return
		}
		for !s.mend() {
			if pause(s.ctx, lookMissing) != nil {
				return
			}
		}
		if pause(s.ctx, lookPause) != nil {
			return
		}
	}
}

// mend looks at the stream and says whether there is nothing more to do.
func (s *Store) mend() bool {
	_, err := s.look(s.ctx)
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		// A server that does not answer is no news of the stream.
		return s.keeper.trouble.Load() == nil
	}
	if s.cfg.NoCreate {
		s.troubled(s.missing(), false)
		return false
	}
	s.troubled(fmt.Errorf("stream %q is gone, and what it held with it; it is being made again", s.cfg.Stream), false)
	if pause(s.ctx, remakePause) != nil {
		return true
	}
	if _, err = s.look(s.ctx); errors.Is(err, jetstream.ErrStreamNotFound) {
		ctx, cancel := context.WithTimeout(s.ctx, lookTimeout)
		defer cancel()
		if err = s.make(ctx); err != nil && s.ctx.Err() == nil {
			err = fmt.Errorf("stream %q is gone and cannot be made again: %w", s.cfg.Stream, err)
			s.cfg.Log.Warn("the stream of the store", "stream", s.cfg.Stream, "err", err)
			s.keeper.trouble.Store(&trouble{err: err})
		}
	}
	return err == nil
}

// away has the stream looked at, of which err says that nobody serves it, and adds to err what is known.
func (s *Store) away(err error) error {
	s.keeper.want()
	if t := s.keeper.trouble.Load(); t != nil {
		return fmt.Errorf("%w (%w)", t.err, err)
	}
	return fmt.Errorf("stream %q is not served: %w", s.cfg.Stream, err)
}

// request is mux.request for what the stream has to answer.
func (s *Store) request(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	if t := s.keeper.trouble.Load(); t != nil && t.fatal {
		return nil, t.err
	}
	reply, err := s.mux.request(ctx, m)
	if err == nil && status(reply) == "503" {
		err = s.away(nats.ErrNoResponders)
	}
	if err != nil {
		return nil, s.explain(m.Subject, err)
	}
	return reply, nil
}

// health says what keeps a server in this process from storing messages.
func (s *Store) health() error {
	if s.cfg.Health == nil {
		return nil
	}
	return s.cfg.Health()
}

// explain says why a request to a subject got no reply, as far as that is known.
func (s *Store) explain(subject string, err error) error {
	if !errors.Is(err, errNoReply) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	known := s.health()
	if t := s.keeper.trouble.Load(); known == nil && t != nil {
		known = t.err
	}
	switch {
	case known != nil:
		return fmt.Errorf("%w (%w)", known, err)
	case !errors.Is(err, errNoReply):
		return err
	case s.cfg.Health != nil: // who asks a server in this process may do everything
		return fmt.Errorf("%w from %s within %v", err, subject, requestTimeout)
	}
	return fmt.Errorf("%w from %s within %v: is the server overloaded, or the user not allowed to use it?", err, subject, requestTimeout)
}
