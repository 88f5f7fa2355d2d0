package dmswap

import (
	"fmt"
	"slices"
)

// allocator hands out free extents. It works on a picture of the pool at one
// moment; what it hands out is reserved only in the picture.
type allocator struct {
	free [][]run // per member, in order, without owners
}

// newAllocator finds the free runs: everything that neither the metadata nor
// an operation under way has.
func newAllocator(m *metadata, pending map[string][]Segment) (*allocator, error) {
	used, err := m.owners(pending)
	if err != nil {
		return nil, err
	}
	a := &allocator{free: make([][]run, len(m.Members))}
	for i, member := range m.Members {
		at := int64(0)
		for _, u := range used[i] {
			if u.start > at {
				a.free[i] = append(a.free[i], run{start: at, count: u.start - at})
			}
			at = u.start + u.count
		}
		if at < member.Extents {
			a.free[i] = append(a.free[i], run{start: at, count: member.Extents - at})
		}
	}
	return a, nil
}

// freeOn counts the free extents of a member.
func (a *allocator) freeOn(member int) int64 {
	var n int64
	for _, r := range a.free[member] {
		n += r.count
	}
	return n
}

func (a *allocator) freeTotal() int64 {
	var n int64
	for i := range a.free {
		n += a.freeOn(i)
	}
	return n
}

// byFree lists members, the emptiest first.
func (a *allocator) byFree() []int {
	order := make([]int, len(a.free))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int {
		return int(min(max(a.freeOn(y)-a.freeOn(x), -1), 1))
	})
	return order
}

// take removes extents from the picture.
func (a *allocator) take(member int, start, count int64) {
	runs := a.free[member]
	i := slices.IndexFunc(runs, func(r run) bool { return r.start <= start && start+count <= r.start+r.count })
	r := runs[i]
	var rest []run
	if start > r.start {
		rest = append(rest, run{start: r.start, count: start - r.start})
	}
	if end := start + count; end < r.start+r.count {
		rest = append(rest, run{start: end, count: r.start + r.count - end})
	}
	a.free[member] = slices.Replace(runs, i, i+1, rest...)
}

// linear allocates count extents: behind the last segment if that can be
// continued, else one run on the emptiest member that has one of that length,
// else the longest runs there are, member by member.
func (a *allocator) linear(count int64, after *Segment) ([]Segment, error) {
	if free := a.freeTotal(); free < count {
		return nil, noSpace(count, free)
	}
	var out []Segment
	add := func(member int, start, n int64) {
		a.take(member, start, n)
		out = append(out, Segment{Extents: n, Stripes: []SegmentStripe{{member, start}}})
		count -= n
	}
	if after != nil && len(after.Stripes) == 1 {
		st := after.Stripes[0]
		end := st.Start + after.Extents
		for _, r := range a.free[st.Member] {
			if r.start == end {
				add(st.Member, end, min(r.count, count))
				break
			}
		}
	}
	order := a.byFree()
	for _, member := range order {
		if count == 0 {
			break
		}
		if i := slices.IndexFunc(a.free[member], func(r run) bool { return r.count >= count }); i >= 0 {
			add(member, a.free[member][i].start, count)
		}
	}
	for _, member := range order {
		for count > 0 && len(a.free[member]) > 0 {
			r := longest(a.free[member])
			add(member, r.start, min(r.count, count))
		}
	}
	return out, nil
}

// striped allocates at least count extents over distinct members, the same
// number on each. The members are those of after, if given, so that a position
// that grows stays on its members; else the emptiest ones.
func (a *allocator) striped(count int64, stripes int, after *Segment) ([]Segment, error) {
	if stripes > len(a.free) {
		return nil, errf(ErrInvalid, fmt.Sprintf("use at most %d stripes", len(a.free)), "%d stripes on a pool of %d members", stripes, len(a.free))
	}
	on := a.byFree()[:stripes]
	slices.Sort(on)
	if after != nil {
		for i, st := range after.Stripes {
			on[i] = st.Member
		}
	}
	each := (count + int64(stripes) - 1) / int64(stripes)
	least := a.freeOn(on[0])
	for _, member := range on {
		least = min(least, a.freeOn(member))
	}
	if least < each {
		return nil, errf(ErrNoSpace, "delete volumes that are not needed, or use a smaller size or fewer stripes", "%d extents are needed on each of %d disks, one of them has %d free", each, stripes, least)
	}
	var out []Segment
	if after != nil {
		// Behind the last segment, as far as all stripes can be continued.
		n := each
		for _, st := range after.Stripes {
			n = min(n, a.runAt(st.Member, st.Start+after.Extents))
		}
		if n > 0 {
			s := Segment{Extents: n}
			for _, st := range after.Stripes {
				s.Stripes = append(s.Stripes, SegmentStripe{st.Member, st.Start + after.Extents})
				a.take(st.Member, st.Start+after.Extents, n)
			}
			out = append(out, s)
			each -= n
		}
	}
	for each > 0 {
		// The longest segment that fits on all members at once.
		n := each
		starts := make([]int64, stripes)
		for _, member := range on {
			n = min(n, longest(a.free[member]).count)
		}
		s := Segment{Extents: n}
		for i, member := range on {
			// The first run that is long enough, to keep long runs whole.
			j := slices.IndexFunc(a.free[member], func(r run) bool { return r.count >= n })
			starts[i] = a.free[member][j].start
			a.take(member, starts[i], n)
			s.Stripes = append(s.Stripes, SegmentStripe{member, starts[i]})
		}
		out = append(out, s)
		each -= n
	}
	return out, nil
}

// runAt returns how many extents are free from start on.
func (a *allocator) runAt(member int, start int64) int64 {
	for _, r := range a.free[member] {
		if r.start == start {
			return r.count
		}
	}
	return 0
}

// allocate hands out extents for a position, appended to what it has.
func (a *allocator) allocate(count int64, stripes int, have []Segment) ([]Segment, error) {
	var after *Segment
	if len(have) > 0 {
		after = &have[len(have)-1]
	}
	var more []Segment
	var err error
	if stripes > 1 {
		more, err = a.striped(count, stripes, after)
	} else {
		more, err = a.linear(count, after)
	}
	if err != nil {
		return nil, err
	}
	return joinSegments(slices.Clone(have), more), nil
}

// joinSegments appends segments. A linear segment that continues the one
// before is made one with it; a striped one too, since the stripes go on where
// they ended: extents are a multiple of the stripe size.
func joinSegments(have, more []Segment) []Segment {
	for _, s := range more {
		if n := len(have); n > 0 && continues(have[n-1], s) {
			have[n-1] = Segment{Extents: have[n-1].Extents + s.Extents, Stripes: have[n-1].Stripes}
			continue
		}
		have = append(have, s)
	}
	return have
}

func continues(a, b Segment) bool {
	return slices.EqualFunc(a.Stripes, b.Stripes, func(x, y SegmentStripe) bool {
		return x.Member == y.Member && x.Start+a.Extents == y.Start
	})
}

func longest(runs []run) run {
	var best run
	for _, r := range runs {
		if r.count > best.count {
			best = r
		}
	}
	return best
}

func noSpace(need, free int64) error {
	return errf(ErrNoSpace, "delete volumes that are not needed, or use a smaller size", "%d extents are needed, %d are free", need, free)
}
