//go:build linux && (amd64 || arm64)

package runtime

import (
	"bytes"
	"os"
	"testing"
)

// variants are the ways to find out which pages were written.
func variants(best memories) map[string]memories {
	m := best.(*mapped)
	all := map[string]memories{"page map": &mapped{pagemap: m.pagemap, fd: m.fd}}
	if m.scan {
		all["scan"] = m
	}
	return all
}

// A memory of which much was written is given back to the system, and is as its image all the same.
func TestManyDirtyPages(t *testing.T) {
	t.Parallel()
	best, err := newMapped()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = best.close() }()
	for name, by := range variants(best) {
		want := bytes.Repeat([]byte("image"), 4*maxDirty*osPage/5+1)[:4*maxDirty*osPage]
		img, err := by.image(want)
		if err != nil {
			t.Fatal(err)
		}
		m, err := by.allocate(uint64(len(want)))
		if err != nil {
			t.Fatal(err)
		}
		b := m.Reallocate(uint64(len(want)))
		if err := m.adopt(img); err != nil {
			t.Fatal(err)
		}
		dirty := func() int {
			n := 0
			for at := 0; at < len(b); {
				spans, end, err := m.(*mapping).written(at)
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range spans {
					n += (s.hi - s.lo) / osPage
				}
				at = end
			}
			return n
		}
		for _, tt := range []struct{ write, stay int }{{100, 100}, {maxDirty, maxDirty}, {maxDirty + 1, 0}, {4 * maxDirty, 0}, {3, 3}} {
			for i := range tt.write {
				b[i*osPage+i%osPage]++
			}
			if err := m.reset(img); err != nil {
				t.Fatal(err)
			}
			if n := dirty(); n != tt.stay {
				t.Errorf("%s: %d pages written, %d stay, want %d", name, tt.write, n, tt.stay)
			}
			if !bytes.Equal(b, want) {
				t.Errorf("%s: %d pages written: the memory is not as its image", name, tt.write)
			}
		}
		m.Free()
		m.Free() // harmless
		if err := img.close(); err != nil {
			t.Error(err)
		}
	}
}

// A page map that does not tell what was written, or is none, is not believed.
func TestPageMapThatLies(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"/dev/zero", "/dev/null", "/dev/urandom"} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, scan := range []bool{false, true} {
			if err := (&mapped{pagemap: f, fd: f.Fd(), scan: scan}).test(); err == nil {
				t.Errorf("%s passes for a page map, scanned: %t", name, scan)
			}
		}
	}
}
