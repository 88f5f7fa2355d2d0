package dmswap

import (
	"fmt"
	"slices"
)

// A pool goes on without a member that is missing or can't be written to. So
// that a member that was away is told apart from one that went its own way
// meanwhile, the metadata names the epochs of the pool. A new epoch begins with
// the first commit that is made by other members than the one before it. Its id
// is random: two members that go on without each other begin different epochs.
//
// A metadata slot lies on the line of another one when the epoch that it ends
// in is the epoch of that other one at the slot's generation. Then its member
// is stale and is brought up to date: nobody could write to its extents while
// it was away. Otherwise the two are a split, and the pool is refused.
//
// Every commit that was answered is on all members that its epoch does not name
// as missing: a member whose header could not be written is left out by a
// commit of its own before the answer. So only an answered commit makes a
// split, with one exception: a crash in the very commit that begins an epoch.

// epoch is a stretch of generations that were committed by the same members.
// The epoch of a pool that never lacked a member has number 0 and no id.
type epoch struct {
	Number int    `json:"number"`
	ID     UUID   `json:"id"`
	First  uint64 `json:"first"` // generation
}

// missingRecord is a member that takes no part in commits.
type missingRecord struct {
	Member int `json:"member"`
	// Holds is the generation that the member has at least: one that comes back
	// with an older one is an old copy of the disk.
	Holds uint64 `json:"holds"`
}

// maxEpochs is how many epochs are kept. A member that was away for longer can't
// be told from one that went its own way.
const maxEpochs = 64

// epochAt returns the epoch that a generation belongs to. Known is false when
// the list does not reach back that far.
func (m *metadata) epochAt(generation uint64) (e epoch, known bool) {
	for _, e := range slices.Backward(m.Epochs) {
		if e.First <= generation {
			return e, true
		}
	}
	return epoch{}, len(m.Epochs) == 0 || m.Epochs[0].Number == 1
}

func (m *metadata) missing(member int) *missingRecord {
	for i := range m.Missing {
		if m.Missing[i].Member == member {
			return &m.Missing[i]
		}
	}
	return nil
}

// beginEpoch makes the members for which out is true the missing ones. first is
// the generation that the epoch begins with, holds is what a member that was not
// missing has at least.
func (m *metadata) beginEpoch(first, holds uint64, out func(member int) bool) {
	number := 1
	if n := len(m.Epochs); n > 0 {
		number = m.Epochs[n-1].Number + 1
	}
	m.Epochs = append(slices.Clone(m.Epochs), epoch{Number: number, ID: NewUUID(), First: first})
	if n := len(m.Epochs); n > maxEpochs {
		m.Epochs = m.Epochs[n-maxEpochs:]
	}
	var missing []missingRecord
	for i := range m.Members {
		if !out(i) {
			continue
		}
		r := missingRecord{Member: i, Holds: holds}
		if was := m.missing(i); was != nil {
			r.Holds = was.Holds
		}
		missing = append(missing, r)
	}
	m.Missing = missing
}

// sameMembers tells whether the members for which out is true are the missing
// ones.
func (m *metadata) sameMembers(out func(member int) bool) bool {
	for i := range m.Members {
		if out(i) != (m.missing(i) != nil) {
			return false
		}
	}
	return true
}

func (m *metadata) checkLineage() error {
	for i, e := range m.Epochs {
		if !validUUID(e.ID) || e.First < 1 || e.First > m.Generation || e.Number < 1 ||
			i > 0 && (e.Number != m.Epochs[i-1].Number+1 || e.First <= m.Epochs[i-1].First) {
			return fmt.Errorf("epoch %d is not valid", e.Number)
		}
	}
	if len(m.Epochs) > maxEpochs || len(m.Missing) >= len(m.Members) || len(m.Missing) > 0 && len(m.Epochs) == 0 {
		return fmt.Errorf("%d epochs, %d of %d members missing", len(m.Epochs), len(m.Missing), len(m.Members))
	}
	for i, r := range m.Missing {
		if r.Member < 0 || r.Member >= len(m.Members) || r.Holds >= m.Generation || i > 0 && r.Member <= m.Missing[i-1].Member {
			return fmt.Errorf("missing member %d is not valid", r.Member)
		}
	}
	return nil
}

// follows tells whether a member whose newest valid slot is s can be brought up
// to best, which holds the pool's metadata; if it can't, the error explains why.
func (best *slotState) follows(s *slotState, at *member) error {
	m, g := best.meta, s.header.Generation
	if g > m.Generation || g == m.Generation && s.header.BodyCRC != best.header.BodyCRC {
		return best.split(s, at, fmt.Sprintf("disk %s holds another generation %d than the other disks, which are at %d", at.path, g, m.Generation))
	}
	if g == m.Generation {
		return nil
	}
	mine, _ := s.meta.epochAt(g)
	theirs, known := m.epochAt(g)
	switch {
	case !known:
		return errf(ErrDamaged, followOthers(at.path),
			"pool %s: disk %s holds metadata generation %d, and the pool is at %d: it was away for so long that it can't be told whether it was used meanwhile",
			m.Pool.Name, at.path, g, m.Generation)
	case mine.ID != theirs.ID:
		return best.split(s, at, fmt.Sprintf("disk %s is at generation %d, and the others went on without it to generation %d", at.path, g, m.Generation))
	}
	holds := m.Previous
	if r := m.missing(at.label.Index); r != nil {
		holds = r.Holds
	}
	if g < holds {
		return errf(ErrDamaged, "find the right disk; if there is none: "+followOthers(at.path),
			"pool %s: disk %s is an old copy, its extents are old too: it holds metadata generation %d, but had %d already, and the pool is at %d",
			m.Pool.Name, at.path, g, holds, m.Generation)
	}
	return nil
}

// followOthers says how to make a disk follow the others by force.
func followOthers(path string) string {
	return "leave it out (swapbackd --disk with the other disks only), or make it follow them: " +
		"swapback pool metadata dump --disk OTHER -o FILE; swapback pool metadata restore FILE --disk " + path + " --force"
}

func (best *slotState) split(s *slotState, at *member, what string) error {
	return errf(ErrSplit, "decide which half is right. If it is the others: "+followOthers(at.path)+". If it is this one, the other way round",
		"pool %s is split, its halves were used without each other: %s (it was last written %s, they %s)",
		best.meta.Pool.Name, what, writtenText(s), writtenText(best))
}

func writtenText(s *slotState) string {
	if s.header.Written.IsZero() {
		return "now"
	}
	return s.header.Written.Format("2006-01-02 15:04:05 UTC")
}
