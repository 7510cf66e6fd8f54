package natskv

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

// load reads a bundle that is no longer in memory; nil where the stream has it no more. Where only one server has the stream any
// may be asked.
func (s *Store) load(ctx context.Context, seq uint64) ([]byte, error) {
	request := []byte(`{"seq":` + strconv.FormatUint(seq, 10) + `}`)
	if s.direct.Load() {
		m, err := s.request(ctx, &nats.Msg{Subject: "$JS.API.DIRECT.GET." + s.cfg.Stream, Data: request})
		if err != nil {
			return nil, err
		}
		switch code := status(m); code {
		case "":
			return m.Data, nil
		case "404":
			return nil, nil
		default:
			return nil, fmt.Errorf("read message %d: %s %s", seq, code, m.Header.Get("Description"))
		}
	}
	m, err := s.request(ctx, &nats.Msg{Subject: "$JS.API.STREAM.MSG.GET." + s.cfg.Stream, Data: request})
	if err != nil {
		return nil, err
	}
	var r struct {
		Error   *apiError `json:"error"`
		Message struct {
			Data []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, fmt.Errorf("read message %d: %w", seq, err)
	}
	switch {
	case r.Error == nil:
		return r.Message.Data, nil
	case r.Error.ErrCode == codeStreamNotFound:
		return nil, s.away(r.Error)
	case r.Error.Code == 404:
		return nil, nil
	}
	return nil, r.Error
}

// lastSequence asks the stream's leader where the log ends.
func (s *Store) lastSequence() (uint64, error) {
	m, err := s.request(s.ctx, &nats.Msg{Subject: "$JS.API.STREAM.INFO." + s.cfg.Stream})
	if err != nil {
		return 0, err
	}
	var r struct {
		Error   *apiError `json:"error"`
		Created time.Time `json:"created"`
		State   struct {
			Last uint64 `json:"last_seq"`
		} `json:"state"`
	}
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return 0, fmt.Errorf("state of stream %q: %w", s.cfg.Stream, err)
	}
	switch {
	case r.Error != nil && r.Error.ErrCode == codeStreamNotFound:
		return 0, s.away(r.Error)
	case r.Error != nil:
		return 0, r.Error
	case !s.keeper.same(r.Created):
		s.keeper.want()
		return 0, errReplaced
	}
	return r.State.Last, nil
}
