package runtime

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
)

// eachMemory runs a test on every kind of memory that this system has.
func eachMemory(t *testing.T, test func(t *testing.T, by memories)) {
	t.Helper()
	t.Run("portable", func(t *testing.T) { test(t, portable{}) })
	best, err := newMapped()
	if err != nil {
		t.Logf("no mapped memories on this system: %v", err)
		return
	}
	for name, by := range variants(best) {
		t.Run(name, func(t *testing.T) { test(t, by) })
	}
	if err := best.close(); err != nil {
		t.Error(err)
	}
}

// Whatever is written, and however much the memory grows, it is put back.
func TestMemory(t *testing.T) {
	t.Parallel()
	eachMemory(t, func(t *testing.T, by memories) {
		for _, pages := range []int{0, 1, 3, 12} {
			const limit = 14 * pageSize
			want := make([]byte, pages*pageSize)
			for i := 0; i < len(want); i += 5000 {
				want[i] = byte(i) | 1
			}
			img, err := by.image(want)
			if err != nil {
				t.Fatal(err)
			}
			m, err := by.allocate(limit)
			if err != nil {
				t.Fatal(err)
			}
			b := m.Reallocate(uint64(len(want)))
			for i := range b {
				b[i] = 77 // an instance is not like its image before it adopts it
			}
			if err := m.adopt(img); err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(1, uint64(pages)))
			for round := range 50 {
				if !bytes.Equal(b, want) {
					t.Fatalf("%d pages, round %d: the memory is not as the image", pages, round)
				}
				size := min(len(want)+r.IntN(3)*pageSize, limit)
				if b = m.Reallocate(uint64(size)); len(b) != size || !isZeroed(b[len(want):]) {
					t.Fatalf("%d pages, round %d: grown pages are not empty", pages, round)
				}
				switch {
				case round%10 == 9: // all of it
					for i := range b {
						b[i] ^= 255
					}
				case len(b) > 0:
					for range r.IntN(200) {
						b[r.IntN(len(b))]++
					}
				}
				if err := m.reset(img); err != nil {
					t.Fatal(err)
				}
				if !isZeroed(b[len(want):]) {
					t.Fatalf("%d pages, round %d: what was grown is not empty", pages, round)
				}
				m.shrink(len(want))
				if b = m.Reallocate(uint64(size) + pageSize); len(b) != len(want) {
					t.Fatalf("%d bytes after shrinking, want %d", len(b), len(want))
				}
			}
			if m.Reallocate(limit+1) != nil {
				t.Error("a memory grows over its limit")
			}
			m.Free()
			if err := img.close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func isZeroed(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// A memory that is smaller than its image is not taken for it, nor copied beyond its end.
func TestMemorySmallerThanImage(t *testing.T) {
	t.Parallel()
	eachMemory(t, func(t *testing.T, by memories) {
		img, err := by.image(make([]byte, 2*pageSize))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = img.close() }()
		m, err := by.allocate(4 * pageSize)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Free()
		m.Reallocate(pageSize)
		if err := m.adopt(img); !errors.Is(err, errSmaller) {
			t.Errorf("adopt: %v", err)
		}
		if err := m.reset(img); !errors.Is(err, errSmaller) {
			t.Errorf("reset: %v", err)
		}
	})
}

// Where memories are copied, one that has grown large is not: its instance is given up.
func TestLargeIsNotCopied(t *testing.T) {
	t.Parallel()
	m, _ := portable{}.allocate(1 << 30)
	img, _ := portable{}.image(make([]byte, pageSize))
	m.Reallocate(pageSize)
	m.Reallocate(2 * maxCopied)
	if err := m.reset(img); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("error %v", err)
	}
}

// stubborn memories do not become smaller.
type stubborn struct{ portable }

func (s stubborn) allocate(limit uint64) (memory, error) {
	m, err := s.portable.allocate(limit)
	return &stubbornMemory{m}, err
}

type stubbornMemory struct{ memory }

func (*stubbornMemory) shrink(int) {}

// broken memories cannot be had.
type broken struct{ portable }

func (broken) allocate(uint64) (memory, error) { return nil, errors.New("no memory today") }

func TestSelfTest(t *testing.T) {
	t.Parallel()
	eachMemory(t, func(t *testing.T, by memories) {
		if err := testShrink(by); err != nil {
			t.Error(err)
		}
	})
	if err := testShrink(stubborn{}); err == nil || !strings.Contains(err.Error(), "does not become smaller") {
		t.Errorf("memories that do not shrink: %v", err)
	}
	if err := testShrink(broken{}); err == nil || !strings.Contains(err.Error(), "no memory today") {
		t.Errorf("memories that cannot be had: %v", err)
	}
	if m := findMeans(nil, slog.New(slog.DiscardHandler)); m.memories != (portable{}) || !m.shrinks {
		t.Errorf("portable means are %+v", m)
	}
}

// Where nothing better passes its test, memories are copied, and the log says why; what passes no test of its own is not used
// either.
func TestNextBest(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	m := findMeans(func() (memories, error) { return nil, errors.New("no page map") }, slog.New(slog.NewTextHandler(&log, nil)))
	if m.memories != (portable{}) || !m.shrinks || !m.freezes || !strings.Contains(log.String(), `why="no page map"`) {
		t.Errorf("without better memories: %+v; log %s", m, &log)
	}
	m = findMeans(func() (memories, error) { return stubborn{}, nil }, slog.New(slog.NewTextHandler(&log, nil)))
	if m.memories != (stubborn{}) || m.shrinks || !strings.Contains(log.String(), "not used again once their memory has grown") {
		t.Errorf("with memories that do not shrink: %+v; log %s", m, &log)
	}
}
