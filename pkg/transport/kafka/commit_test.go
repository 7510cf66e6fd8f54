package kafka

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestMetadata(t *testing.T) {
	t.Parallel()
	id := uuid.MustParse("0af7dedf-02a4-4789-a1c0-741314bc124d")
	text := formatMetadata(id, 42)
	if text != "wasmsidecar 1 0af7dedf-02a4-4789-a1c0-741314bc124d 42" {
		t.Errorf("the metadata is %q", text)
	}
	if got, want := parseMetadata(7, text), (committed{7, id.String(), 42, true}); got != want {
		t.Errorf("read as %+v", got)
	}
	for _, foreign := range []string{"", "x", "wasmsidecar 1", "wasmsidecar 1 id", "wasmsidecar 1 id x", "wasmsidecar 1 id -4", "wasmsidecar 2 id 4"} {
		if got := parseMetadata(7, foreign); got.ours {
			t.Errorf("%q was read as %+v", foreign, got)
		}
	}
}

// FuzzMetadata: whatever another program wrote is read without a panic, and never as a bound below zero.
func FuzzMetadata(f *testing.F) {
	f.Add("wasmsidecar 1 0af7dedf-02a4-4789-a1c0-741314bc124d 42")
	f.Add("wasmsidecar 1  ")
	f.Fuzz(func(t *testing.T, text string) {
		if c := parseMetadata(1, text); c.ours && (c.bound < 0 || !strings.HasPrefix(text, metadataMark)) {
			t.Errorf("%q was read as %+v", text, c)
		}
	})
}

// The watermark is the first offset that is not settled, in whatever order and with whatever gaps.
func TestWatermark(t *testing.T) {
	t.Parallel()
	p := &partition{src: &source{maxSpan: 1000, t: &Transport{cfg: Config{CommitInterval: time.Second}}}, watermark: 5}
	offsets := []int64{5, 6, 9, 10, 17}
	seqs := make([]uint64, len(offsets))
	for i, o := range offsets {
		seqs[i] = p.add(o)
	}
	for _, step := range []struct {
		settle int
		want   int64
	}{{1, 5}, {0, 7}, {3, 7}, {4, 7}, {2, 18}} {
		p.complete(seqs[step.settle])
		if p.watermark != step.want {
			t.Errorf("after offset %d the watermark is %d, want %d", offsets[step.settle], p.watermark, step.want)
		}
	}
	if p.handed != 18 || p.room() != 1000 {
		t.Errorf("handed out below %d, room for %d", p.handed, p.room())
	}
	var last uint64
	for o := range int64(5000) { // the span is compacted as it goes
		seq := p.add(100 + o)
		if o > 0 {
			p.complete(last)
		}
		last = seq
	}
	if p.watermark != 5099 || len(p.span) > 8 {
		t.Errorf("watermark %d, span of %d", p.watermark, len(p.span))
	}
}
