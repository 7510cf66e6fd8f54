package natskv

import (
	"context"
	"encoding/json"
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
	floor   atomic.Int64 // sequences of the stream in use are above

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
		Name:               s.cfg.Stream,
		Description:        "state of wasmsidecar",
		Subjects:           []string{s.cfg.Prefix + ".>"},
		Storage:            jetstream.FileStorage,
		Replicas:           s.cfg.Replicas,
		MaxMsgsPerSubject:  1,
		MaxBytes:           s.cfg.MaxBytes,
		Discard:            jetstream.DiscardNew, // nothing makes room by itself
		AllowDirect:        s.cfg.Replicas == 1,
		AllowMsgTTL:        true,
		AllowAtomicPublish: true,
		FirstSeq:           uint64(s.keeper.first()),
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
	return fmt.Errorf("stream %q is missing and nats.create is false; make it with subjects %q, max_msgs_per_subject 1, discard new, "+
		"allow_direct, allow_msg_ttl, allow_atomic and first_seq %d, or set nats.create", s.cfg.Stream, s.cfg.Prefix+".>", s.keeper.first())
}

// fits says why a stream will not do.
func (s *Store) fits(got jetstream.StreamConfig) error {
	subject := s.cfg.Prefix + ".>"
	switch {
	case !got.AllowMsgTTL, !got.AllowAtomicPublish:
		return errors.New("it does not allow message TTLs and atomic batches: delete it, or name another")
	case got.MaxMsgsPerSubject != 1 || got.Discard != jetstream.DiscardNew || got.MaxAge != 0:
		return errors.New("it does not keep one message of each subject for good: delete it, or name another")
	case got.SubjectDeleteMarkerTTL != 0:
		// The server's own marker may overwrite a message that was written in the moment of the expiry.
		return errors.New("it has subject_delete_marker_ttl, which can lose writes: set it to 0")
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
	k.created, k.known = created, max(first, last)
	k.saw(last)
	if !again {
		k.floor.Store(last)
	} else {
		k.floor.Store(first - 1)
		s.mux.epoch.Add(1)         // every consumer begins anew
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
func (s *Store) request(ctx context.Context, more func(*nats.Msg) bool, msgs ...*nats.Msg) ([]*nats.Msg, error) {
	if t := s.keeper.trouble.Load(); t != nil && t.fatal {
		return nil, t.err
	}
	replies, err := s.mux.request(ctx, more, msgs...)
	if err == nil && status(replies[0]) == "503" {
		err = s.away(nats.ErrNoResponders)
	}
	if err != nil {
		return nil, s.explain(msgs[len(msgs)-1].Subject, err)
	}
	return replies, nil
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

// pubAck is the reply to a publication.
type pubAck struct {
	Seq   int64     `json:"seq"`
	Error *apiError `json:"error"`
}

// publish writes msgs and returns the sequence of the last one.
func (s *Store) publish(ctx context.Context, msgs ...*nats.Msg) (int64, error) {
	if err := s.health(); err != nil {
		return 0, err
	}
	replies, err := s.request(ctx, nil, msgs...)
	if err != nil {
		return 0, err
	}
	var ack pubAck
	if err := json.Unmarshal(replies[0].Data, &ack); err != nil {
		return 0, fmt.Errorf("acknowledgement %q: %w", replies[0].Data, err)
	}
	if ack.Error != nil {
		return 0, ack.Error
	}
	if ack.Seq <= s.keeper.floor.Load() {
		s.keeper.want() // another stream of the same name
		return 0, fmt.Errorf("stream %q counts from the beginning: it was made again", s.cfg.Stream)
	}
	s.keeper.saw(ack.Seq)
	return ack.Seq, nil
}
