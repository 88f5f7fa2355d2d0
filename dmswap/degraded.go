package dmswap

import "fmt"

// memberState describes whether a member takes part. The caller holds mu.
func (p *Pool) memberState(i int) (state, problem string) {
	switch m := p.store.members[i]; {
	case m.out == nil:
		return MemberOK, ""
	case m.disk == nil:
		return MemberMissing, m.out.Error()
	default:
		return MemberFailed, m.out.Error()
	}
}

// lacks says which member that takes no part has extents of a position, and
// why, or "". The caller holds mu.
func (p *Pool) lacks(pos *positionRecord) string {
	for _, s := range pos.Segments {
		for _, st := range s.Stripes {
			if p.store.out(st.Member) {
				m := p.store.members[st.Member]
				state, problem := p.memberState(st.Member)
				return fmt.Sprintf("member %d (%s) is %s: %s", st.Member, m.path, state, problem)
			}
		}
	}
	return ""
}

// mustBeWhole refuses volumes that are degraded: what a grow or a snapshot makes
// of them could not be undone when the member is back.
func (p *Pool) mustBeWhole(list []volumeRecord) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, v := range list {
		if why := p.lacks(p.meta.position(v.Position)); why != "" {
			return &DegradedError{Volume: v.Name, Why: why}
		}
	}
	return nil
}

// leaveOutDead commits once more what is committed, and tells whether that left
// members out. A disk that died is noticed by a commit only; whoever finds it dead
// in another way need not choose it again.
func (p *Pool) leaveOutDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := len(p.store.present())
	if err := p.commit(func(*metadata) error { return nil }); err != nil {
		p.log.Error("looking for dead members", "err", err)
	}
	return len(p.store.present()) < before
}

// allocator finds the free extents on members that take part. The caller holds
// mu.
func (p *Pool) allocator() (*allocator, error) {
	a, err := newAllocator(p.meta, p.pending)
	if err != nil {
		return nil, err
	}
	for i := range a.free {
		if p.store.out(i) {
			a.free[i] = nil
		}
	}
	return a, nil
}
