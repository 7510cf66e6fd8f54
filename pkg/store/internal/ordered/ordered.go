// Package ordered is a set of names in memory that is sorted by score and then by name. It holds the ordered sets of the stores
// that have no database to sort for them. A member costs its name, once, and about 100 bytes.
package ordered

import (
	"slices"
	"strings"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// maxBlock is the most members of a block. A change moves at most that many.
const maxBlock = 512

// Set is an ordered set. The zero value is empty and ready. It is not safe for concurrent use.
type Set struct {
	scores map[string]int64
	blocks [][]store.Member // sorted, none empty
}

// Len returns the number of members.
func (s *Set) Len() int { return len(s.scores) }

// Score returns the score of a member.
func (s *Set) Score(name string) (int64, bool) {
	v, ok := s.scores[name]
	return v, ok
}

// Add puts name into the set, or moves it to score.
func (s *Set) Add(name string, score int64) {
	if old, ok := s.scores[name]; ok {
		if old == score {
			return
		}
		s.Remove(name)
	}
	if s.scores == nil {
		s.scores = make(map[string]int64)
	}
	s.scores[name] = score
	m := store.Member{Name: name, Score: score}
	if len(s.blocks) == 0 {
		s.blocks = [][]store.Member{{m}}
		return
	}
	b, i := s.find(m)
	if b == len(s.blocks) {
		b, i = b-1, len(s.blocks[b-1])
	}
	block := slices.Insert(s.blocks[b], i, m)
	s.blocks[b] = block
	if len(block) > maxBlock {
		half := len(block) / 2
		s.blocks = slices.Insert(s.blocks, b+1, slices.Clone(block[half:]))
		s.blocks[b] = slices.Clip(block[:half])
	}
}

// Remove takes name out and says whether it was there.
func (s *Set) Remove(name string) bool {
	score, ok := s.scores[name]
	if !ok {
		return false
	}
	delete(s.scores, name)
	b, i := s.find(store.Member{Name: name, Score: score})
	s.blocks[b] = slices.Delete(s.blocks[b], i, i+1)
	if len(s.blocks[b]) == 0 {
		s.blocks = slices.Delete(s.blocks, b, b+1)
	}
	return true
}

// Range returns at most limit members of what r asks for; r.Set and r.Limit are not looked at.
func (s *Set) Range(r store.Range, limit int) []store.Member {
	if r.Min > r.Max || len(s.blocks) == 0 {
		return nil
	}
	if r.Reverse {
		return s.down(r, limit)
	}
	var out []store.Member
	b, i := s.find(store.Member{Name: r.After, Score: r.Min})
	for ; b < len(s.blocks); b, i = b+1, 0 {
		for _, m := range s.blocks[b][i:] {
			if m.Score > r.Max || len(out) == limit {
				return out
			}
			if r.After != "" && m.Score == r.Min && m.Name == r.After {
				continue
			}
			out = append(out, m)
		}
	}
	return out
}

func (s *Set) down(r store.Range, limit int) []store.Member {
	// Begin at the first member that is too high, and go back from there.
	b, i := len(s.blocks), 0
	switch {
	case r.After != "":
		b, i = s.find(store.Member{Name: r.After, Score: r.Max})
	case r.Max < 1<<63-1:
		b, i = s.find(store.Member{Score: r.Max + 1})
	}
	var out []store.Member
	for {
		if i == 0 {
			if b == 0 {
				return out
			}
			b--
			i = len(s.blocks[b])
		}
		i--
		m := s.blocks[b][i]
		if m.Score < r.Min || len(out) == limit {
			return out
		}
		out = append(out, m)
	}
}

// find returns where the first member stands that is not before m.
func (s *Set) find(m store.Member) (block, at int) {
	block, _ = slices.BinarySearchFunc(s.blocks, m, func(b []store.Member, m store.Member) int {
		return compare(b[len(b)-1], m)
	})
	if block == len(s.blocks) {
		return block, 0
	}
	at, _ = slices.BinarySearchFunc(s.blocks[block], m, compare)
	return block, at
}

func compare(a, b store.Member) int {
	switch {
	case a.Score < b.Score:
		return -1
	case a.Score > b.Score:
		return 1
	}
	return strings.Compare(a.Name, b.Name)
}
