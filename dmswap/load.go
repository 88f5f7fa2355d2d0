package dmswap

import (
	"errors"
	"fmt"
)

// load reads all slots of all members that are there, takes the newest metadata
// and brings the others up to it. It refuses members that were used apart from
// each other, old copies, and metadata that is known not to be the newest; then
// nothing has been written. A member that can't be read or written is left out.
func (s *store) load() error {
	best, err := s.choose()
	if err != nil {
		return err
	}
	s.meta = best.meta
	return s.bringUp(best)
}

// choose finds the newest metadata and places every member by it.
func (s *store) choose() (*slotState, error) {
	states := make([][2]slotState, len(s.members))
	var best *slotState
	for i, m := range s.members {
		if m.out != nil {
			continue
		}
		for j := range 2 {
			states[i][j] = readSlot(m.disk, &m.label, j)
			st := &states[i][j]
			switch {
			case st.err == nil:
				s.last = max(s.last, st.header.Generation)
				if best == nil || st.header.Generation > best.header.Generation {
					best = st
				}
			case errors.Is(st.err, errNewer):
				return nil, &Error{
					Kind: ErrDamaged, Message: fmt.Sprintf("pool %s: disk %s metadata slot %s", m.label.PoolName, m.path, slotName(j)), Err: st.err,
					Remedy: "use a newer swapback",
				}
			case !errors.Is(st.err, errEmptySlot):
				s.log.Warn("metadata slot does not count", "disk", m.path, "slot", slotName(j), "err", st.err)
			}
		}
	}
	if best == nil {
		return nil, s.noSlot(states)
	}
	if err := s.mustBeNewest(states, best); err != nil {
		return nil, err
	}
	for i, m := range s.members {
		if m.out != nil {
			continue
		}
		if err := best.meta.agrees(&m.label); err != nil {
			return nil, &Error{Kind: ErrDamaged, Message: "pool " + m.label.PoolName + ": disk " + m.path, Err: err, Remedy: "check that these are the right disks"}
		}
		newest := m.place(&states[i], best)
		if newest != nil {
			if err := best.follows(newest, m); err != nil {
				return nil, err
			}
		} else if errors.Is(states[i][0].err, errUnreadable) || errors.Is(states[i][1].err, errUnreadable) {
			// What it holds may come back: it is not written over unasked.
			s.leaveOut(i, errors.Join(states[i][0].err, states[i][1].err))
		}
	}
	return best, nil
}

func (s *store) noSlot(states [][2]slotState) error {
	var errs []error
	name := ""
	for i, m := range s.members {
		if m.out != nil {
			continue
		}
		name = m.label.PoolName
		for j := range 2 {
			errs = append(errs, fmt.Errorf("%s slot %s: %w", m.path, slotName(j), states[i][j].err))
		}
	}
	return &Error{
		Kind: ErrDamaged, Message: fmt.Sprintf("pool %s: no member has a valid metadata slot", name), Err: errors.Join(errs...),
		Remedy: "restore a dump (swapback pool metadata restore). The slots' bodies are text (docs/formats.md): what can be read there can be restored by hand",
	}
}

// mustBeNewest refuses the best metadata that can be read when a header says
// that there was newer one: a header is written when its body is durable on all
// members, so its body was damaged later.
func (s *store) mustBeNewest(states [][2]slotState, best *slotState) error {
	for i, m := range s.members {
		for j := range 2 {
			st := &states[i][j]
			if m.out != nil || st.err == nil || st.header.Generation <= best.header.Generation ||
				st.header.Pool != m.label.Pool || st.header.Member != m.label.Member {
				continue
			}
			return &Error{
				Kind: ErrDamaged, Message: fmt.Sprintf("pool %s: generation %d was committed, but on disk %s it is damaged in slot %s, and the newest that can be read is %d",
					m.label.PoolName, st.header.Generation, m.path, slotName(j), best.header.Generation), Err: st.err,
				Remedy: fmt.Sprintf("connect the other members; if none has it, go back to generation %d with swapback pool metadata dump and restore --force", best.header.Generation),
			}
		}
	}
	return s.mustBeVouchedFor(states, best)
}

// mustBeVouchedFor refuses the best metadata when all members that have it have
// another header that can't be read: that one may be of a newer commit. An answered
// commit is on all members that take part, so one member of which everything can
// be read is enough.
func (s *store) mustBeVouchedFor(states [][2]slotState, best *slotState) error {
	var why error
	for i, m := range s.members {
		if m.out != nil {
			continue
		}
		has := false
		var unreadable error
		for j := range 2 {
			st := &states[i][j]
			has = has || st.err == nil && st.header.Generation == best.header.Generation
			if st.headerUnreadable() {
				unreadable = fmt.Errorf("disk %s metadata slot %s: %w", m.path, slotName(j), st.err)
			}
		}
		switch {
		case unreadable != nil:
			why = errors.Join(why, unreadable)
		case has:
			return nil
		}
	}
	return &Error{
		Kind: ErrDamaged, Message: fmt.Sprintf("pool %s: the newest generation that can be read is %d, but what can't be read may be newer", best.meta.Pool.Name, best.header.Generation), Err: why,
		Remedy: fmt.Sprintf("mend the disks (dmesg), or connect the other members; if there is nothing newer, go on with generation %d by swapback pool metadata dump and restore --force", best.header.Generation),
	}
}

// place notes which slot of a member holds the best state, and returns the
// newest valid one, if there is one.
func (m *member) place(states *[2]slotState, best *slotState) (newest *slotState) {
	m.newest, m.spare = -1, 0
	for j := range 2 {
		st := &states[j]
		if st.err != nil {
			continue
		}
		if newest == nil || st.header.Generation > newest.header.Generation {
			newest = st
		}
		if st.header.Generation == best.header.Generation {
			m.newest = j
		}
	}
	if m.newest < 0 && newest == &states[0] {
		m.spare = 1 // keep what is valid
	}
	return newest
}

// bringUp writes the committed metadata on members that are behind.
func (s *store) bringUp(best *slotState) error {
	var errs []error
	for i, m := range s.members {
		if m.out != nil || m.newest >= 0 {
			continue
		}
		if err := m.write(best.header.Generation, best.body); err != nil {
			s.leaveOut(i, err)
			errs = append(errs, err)
			continue
		}
		s.log.Warn("member was behind and was brought up to date", "disk", m.path, "generation", best.header.Generation)
	}
	if len(s.present()) == 0 {
		return &Error{Kind: ErrDamaged, Message: "no member can be written to", Err: errors.Join(errs...)}
	}
	return nil
}
