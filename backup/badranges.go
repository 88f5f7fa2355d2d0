package backup

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"github.com/swapback/swapback/backup/internal/store"
)

// maxBad bounds the list of damaged ranges, and so the memory and the text that
// very much damage costs.
const maxBad = 10000

// badList is the damaged ranges of a volume, sorted, neighbours joined where one
// object is to blame. It never ends a restore: when it would get too long, ranges
// that lie near each other become one that has all of them, and what is good in
// between counts as damaged, too.
type badList struct {
	ranges []BadRange
	bytes  int64 // of all that was added
	coarse bool  // there may be good ones in the ranges, too
}

// add takes up a range. Ranges that are added do not overlap each other.
func (l *badList) add(b BadRange) {
	l.bytes += b.Length
	i, _ := slices.BinarySearchFunc(l.ranges, b.Offset, func(r BadRange, off int64) int { return cmp.Compare(r.Offset, off) })
	if i > 0 && l.ranges[i-1].end() >= b.end() {
		return // within one that is several
	}
	l.ranges = slices.Insert(l.ranges, i, b)
	joins := func(i int) bool {
		return i > 0 && i < len(l.ranges) && l.ranges[i-1].Object == l.ranges[i].Object && l.ranges[i-1].end() == l.ranges[i].Offset
	}
	for _, k := range []int{i + 1, i} {
		if joins(k) {
			l.ranges[k-1].Length += l.ranges[k].Length
			l.ranges = slices.Delete(l.ranges, k, k+1)
		}
	}
	if len(l.ranges) < maxBad {
		return
	}
	l.coarse = true
	for gap := int64(0); len(l.ranges) > maxBad/2; gap = max(1<<16, 2*gap) {
		l.coarsen(gap)
	}
}

const (
	badOthers  = " and others"
	badSeveral = "several damaged ranges near each other, the first: "
)

// coarsen joins ranges that are at most gap bytes from each other.
func (l *badList) coarsen(gap int64) {
	kept := l.ranges[:1]
	for _, b := range l.ranges[1:] {
		last := &kept[len(kept)-1]
		if b.Offset-last.end() > gap {
			kept = append(kept, b)
			continue
		}
		if last.Object != b.Object && !strings.HasSuffix(last.Object, badOthers) {
			last.Object += badOthers
		}
		if !strings.HasPrefix(last.Reason, badSeveral) {
			last.Reason = badSeveral + last.Reason
		}
		last.Length = b.end() - last.Offset
	}
	clear(l.ranges[len(kept):])
	l.ranges = kept
}

// has tells whether a listed range has the byte at off.
func (l *badList) has(off int64) bool {
	i, found := slices.BinarySearchFunc(l.ranges, off, func(r BadRange, off int64) int { return cmp.Compare(r.Offset, off) })
	return found || i > 0 && off < l.ranges[i-1].end()
}

// reasonOf is what a BadRange says of an error. It names the object already.
func reasonOf(err error) string {
	if errors.Is(err, store.ErrNotExist) {
		return "the object is not there"
	}
	return err.Error()
}

func (b BadRange) end() int64 { return b.Offset + b.Length }

// mergeBad sorts ranges and joins neighbours whose object is the same.
func mergeBad(bad []BadRange) []BadRange {
	slices.SortFunc(bad, func(a, b BadRange) int { return cmp.Compare(a.Offset, b.Offset) })
	var merged []BadRange
	for _, b := range bad {
		if n := len(merged) - 1; n >= 0 && merged[n].Object == b.Object && merged[n].end() == b.Offset {
			merged[n].Length += b.Length
			continue
		}
		merged = append(merged, b)
	}
	return merged
}
