package runtime

import (
	"errors"
	"fmt"

	"github.com/tetratelabs/wazero/experimental"
)

// maxCopied is the most memory, in bytes, that is put back by copying all of it where nothing better is to be had.
const maxCopied = 1 << 20

// memory is the linear memory of an instance that is used for more than one job. It belongs to the goroutine that has the
// instance.
type memory interface {
	experimental.LinearMemory
	// adopt makes the memory, which is as large as the image, equal to it.
	adopt(img *image) error
	// reset puts back what was written since adopt and empties what was grown. After an error the memory is of no use.
	reset(img *image) error
	// shrink makes the next Reallocate return size bytes, whatever it is asked for.
	shrink(size int)
	// restrict makes most, which is no more than what the memory was allocated with, the most bytes that it can have from now on.
	restrict(most uint64)
	// refused says whether the last growth that was asked for since restrict was more than that.
	refused() bool
	// denied says whether any growth since restrict was.
	denied() bool
}

// memories makes memories and their images, by the best means that this system has.
type memories interface {
	// allocate returns a memory that can grow to limit bytes.
	allocate(limit uint64) (memory, error)
	// image returns a copy of b, which its memories can be put back to.
	image(b []byte) (*image, error)
	// most is the largest image that memories can be put back to, in bytes.
	most() int
	// close gives back what memories hold in common. No memory is in use any more.
	close() error
}

// image is what the memory of a guest held when it was ready for its first job.
type image struct {
	bytes  []byte
	fd     int          // of the file that bytes are mapped from, where they are
	filled []span       // of a small one, where that is known, what is not zero
	free   func() error // may be nil
}

// span is a range of bytes of a memory.
type span struct{ lo, hi int }

func (img *image) close() error {
	if img == nil || img.free == nil {
		return nil
	}
	return img.free()
}

// portable keeps memories in Go's heap and copies all of their bytes.
type portable struct{}

func (portable) allocate(limit uint64) (memory, error) { return &heap{growth: newGrowth(limit)}, nil }

func (portable) image(b []byte) (*image, error) {
	return &image{bytes: append(make([]byte, 0, len(b)), b...)}, nil
}

func (portable) most() int { return maxCopied }

func (portable) close() error { return nil }

// growth is what a memory may grow to.
type growth struct {
	limit  uint64
	over   bool // what was asked for last is more
	ever   bool // over was true
	shrunk int  // what shrink said; -1: nothing
}

func newGrowth(limit uint64) growth { return growth{limit: limit, shrunk: -1} }

// grow answers a call of Reallocate: which size to take on, or that it is too much.
func (g *growth) grow(size uint64) (uint64, bool) {
	if n := g.shrunk; n >= 0 {
		g.shrunk = -1
		return uint64(n), true
	}
	g.over = size > g.limit
	g.ever = g.ever || g.over
	return size, !g.over
}

func (g *growth) shrink(size int)   { g.shrunk = size }
func (g *growth) restrict(n uint64) { g.limit, g.over, g.ever = n, false, false }
func (g *growth) refused() bool     { return g.over }
func (g *growth) denied() bool      { return g.ever }

// heap is a memory in Go's heap. What is beyond its length and within its capacity is zero.
type heap struct {
	growth
	b []byte
}

// Reallocate implements experimental.LinearMemory.
func (h *heap) Reallocate(size uint64) []byte {
	size, ok := h.grow(size)
	switch {
	case !ok:
		return nil
	case size > uint64(cap(h.b)):
		b := make([]byte, size, max(size, min(2*uint64(cap(h.b)), h.limit)))
		copy(b, h.b)
		h.b = b
	default:
		h.b = h.b[:size]
	}
	return h.b[:len(h.b):len(h.b)]
}

// Free implements experimental.LinearMemory.
func (h *heap) Free() { h.b = nil }

func (h *heap) adopt(img *image) error { return h.reset(img) }

func (h *heap) reset(img *image) error {
	if cap(h.b) > maxCopied {
		return fmt.Errorf("memory of %s is too large to be copied for each job", size(int64(cap(h.b))))
	}
	if len(h.b) < len(img.bytes) {
		return errSmaller
	}
	clear(h.b[copy(h.b, img.bytes):])
	return nil
}

var errSmaller = errors.New("memory is smaller than its image")
