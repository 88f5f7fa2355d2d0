package dmswap

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/swapback/swapback/failpoint"
)

// store keeps the metadata of one pool on its members. It is not safe for
// concurrent use; [Pool] calls it under its lock.
type store struct {
	members []*member
	log     *slog.Logger
	// last is the highest generation that was ever tried, so that a number is
	// never used for two different contents.
	last uint64
	// staged is what publish may publish: the newest, until something else has
	// been written into its slots.
	staged *staged
	// broken is set when it is unknown which generation the members hold.
	broken error
}

// member is a disk of a pool.
type member struct {
	disk  disk
	path  string
	label label
	// newest is the slot that holds the committed generation, or -1 when this
	// member is behind: then spare says which slot to write.
	newest int
	spare  int
}

func (m *member) target() int {
	if m.newest >= 0 {
		return 1 - m.newest
	}
	return m.spare
}

// load reads all slots of all members and returns the newest metadata.
func (s *store) load() (*metadata, error) {
	states := make([][2]slotState, len(s.members))
	var best *slotState
	for i, m := range s.members {
		for j := range 2 {
			states[i][j] = readSlot(m.disk, &m.label, j)
			st := &states[i][j]
			if st.err == nil {
				s.last = max(s.last, st.header.Generation)
				if best == nil || st.header.Generation > best.header.Generation {
					best = st
				}
			} else if !errors.Is(st.err, errEmptySlot) {
				s.log.Warn("metadata slot does not count", "disk", m.path, "slot", slotName(j), "err", st.err)
			}
		}
	}
	if best == nil {
		var errs []error
		for i, m := range s.members {
			for j := range 2 {
				errs = append(errs, fmt.Errorf("%s slot %s: %w", m.path, slotName(j), states[i][j].err))
			}
		}
		return nil, &Error{
			Kind: ErrDamaged, Message: fmt.Sprintf("pool %s: no member has a valid metadata slot", s.members[0].label.PoolName), Err: errors.Join(errs...),
			Remedy: "the slots' bodies are text (docs/formats.md): what can be read there can be restored by hand",
		}
	}
	for i, m := range s.members {
		if err := m.place(&states[i], best); err != nil {
			return nil, err
		}
	}
	return best.meta, nil
}

// place notes which slot of a member holds the best state, and refuses a member
// whose metadata can't be the work of a crash. A crash leaves a member at most
// one commit behind. One that is further behind is an old copy of the disk, or
// was disconnected while the pool went on, and its extents are as old as its
// metadata: bringing only the metadata up to date would hide that.
func (m *member) place(states *[2]slotState, best *slotState) error {
	m.newest, m.spare = -1, 0
	var newest uint64
	for j := range 2 {
		st := &states[j]
		if st.err != nil {
			continue
		}
		newest = max(newest, st.header.Generation)
		if st.header.Generation != best.header.Generation {
			m.spare = 1 - j // keep what is valid
			continue
		}
		if st.header.BodyCRC != best.header.BodyCRC {
			return errf(ErrDamaged, "one of them was used apart from the others or copied back from an old image; find the right one",
				"pool %s: the members disagree about generation %d (%s)", m.label.PoolName, newest, m.path)
		}
		m.newest = j
	}
	if newest != 0 && newest < best.meta.Previous {
		return errf(ErrDamaged, "it is an old copy, or was away while the pool was used: find the right disk; if there is none, the pool has to come from a backup",
			"pool %s: disk %s holds metadata generation %d, but the pool is at %d", m.label.PoolName, m.path, newest, best.header.Generation)
	}
	return nil
}

// repair brings members that are behind up to the committed metadata.
func (s *store) repair(meta *metadata) error {
	body, err := meta.encode()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range s.members {
		if m.newest >= 0 {
			continue
		}
		if err := m.write(meta.Generation, body); err != nil {
			errs = append(errs, err)
			continue
		}
		s.log.Warn("member was behind and was brought up to date", "disk", m.path, "generation", meta.Generation)
	}
	return errors.Join(errs...)
}

// write puts one generation on one member.
func (m *member) write(generation uint64, body []byte) error {
	slot := m.target()
	if err := writeBody(m.disk, &m.label, slot, body); err != nil {
		return m.slotError("body", slot, err)
	}
	header := m.header(generation, body)
	stampHeader(header, time.Now())
	if err := m.disk.WriteDurable(header, m.label.Slots[slot]); err != nil {
		return m.slotError("header", slot, err)
	}
	m.newest = slot
	return nil
}

// header is the block that makes a slot of this member valid, but for its time.
func (m *member) header(generation uint64, body []byte) []byte {
	return slotHeader{
		Generation: generation, BodyLen: int64(len(body)), BodyCRC: crc(body),
		Pool: m.label.Pool, Member: m.label.Member,
	}.encode()
}

func (m *member) slotError(what string, slot int, err error) error {
	return fmt.Errorf("writing the %s of metadata slot %s on %s: %w", what, slotName(slot), m.path, err)
}

// staged is a generation whose body is durable on every member. What it lacks
// is one block per member, which publish writes. A staged generation that is
// never published is a slot that is not valid; nothing has to be taken back.
type staged struct {
	meta    *metadata
	slots   []int    // of the members
	headers [][]byte // of the members
}

// stage does everything of a commit that can be done before its point of no
// return. Only the newest staged generation can be published: another one has
// written over its slots.
func (s *store) stage(meta *metadata) (*staged, error) {
	s.staged = nil
	if s.broken != nil {
		return nil, s.broken
	}
	meta.Previous, meta.Generation = meta.Generation, s.last+1
	if err := meta.check(); err != nil {
		return nil, fmt.Errorf("refusing to commit inconsistent metadata: %w", err)
	}
	body, err := meta.encode()
	if err != nil {
		return nil, fmt.Errorf("encoding the metadata: %w", err)
	}
	for _, m := range s.members {
		if int64(len(body)) > m.label.SlotSize-slotBody {
			return nil, errTooLarge(len(body), m.label.SlotSize)
		}
	}
	s.last = meta.Generation
	st := &staged{meta: meta}
	for _, m := range s.members {
		st.slots = append(st.slots, m.target())
		st.headers = append(st.headers, m.header(meta.Generation, body))
	}
	errs := s.each(func(i int, m *member) error { return writeBody(m.disk, &m.label, st.slots[i], body) })
	if err := join(errs); err != nil {
		return nil, fmt.Errorf("committing generation %d, nothing has changed: %w", meta.Generation, s.describe("body", st.slots, errs))
	}
	s.staged = st
	failpoint.Hit("commit: staged")
	return st, nil
}

// publish makes a staged generation the pool's. When it returns nil the new
// generation counts, also after a crash. When it returns an error the old one
// does, unless the store is broken.
//
// One member whose header was written makes the commit: from then on opening
// the pool finds the new generation. So a member that fails at its header while
// another succeeds is only behind.
func (s *store) publish(st *staged) error {
	if s.staged != st {
		return fmt.Errorf("generation %d of the metadata is not staged any more", st.meta.Generation)
	}
	s.staged = nil
	errs, fatal := s.writeHeaders(st)
	if fatal || !slices.Contains(errs, nil) {
		return s.takeBack(st, s.describe("header", st.slots, errs))
	}
	for i, m := range s.members {
		if errs[i] == nil {
			m.newest = st.slots[i]
		} else {
			m.newest, m.spare = -1, st.slots[i]
			s.log.Error("member is behind: its metadata could not be written", "disk", m.path, "generation", st.meta.Generation, "err", errs[i])
		}
	}
	failpoint.Hit("commit: published")
	return nil
}

// commit stages and publishes meta as a new generation.
func (s *store) commit(meta *metadata) error {
	st, err := s.stage(meta)
	if err != nil {
		return err
	}
	return s.publish(st)
}

// writeHeaders makes the slots valid. Members that are behind already go first,
// and when one of them fails again the others are not written and fatal is set:
// no member may ever miss two commits.
func (s *store) writeHeaders(st *staged) (errs []error, fatal bool) {
	now := time.Now()
	for _, h := range st.headers {
		stampHeader(h, now)
	}
	write := func(behind bool) []error {
		return s.each(func(i int, m *member) error {
			if (m.newest < 0) != behind {
				return nil
			}
			return m.disk.WriteDurable(st.headers[i], m.label.Slots[st.slots[i]])
		})
	}
	if slices.ContainsFunc(s.members, func(m *member) bool { return m.newest < 0 }) {
		if errs = write(true); join(errs) != nil {
			return errs, true
		}
	}
	return write(false), false
}

// takeBack undoes a commit that failed at its headers: a failed write may still
// have reached the disk.
func (s *store) takeBack(st *staged, cause error) error {
	generation := st.meta.Generation
	errs := s.each(func(i int, m *member) error {
		return m.disk.WriteDurable(alignedBuffer(blockSize), m.label.Slots[st.slots[i]])
	})
	if err := join(errs); err != nil {
		s.broken = &Error{
			Kind: ErrDamaged, Message: fmt.Sprintf("it is unknown whether generation %d of the metadata is on the disks", generation), Err: errors.Join(cause, err),
			Remedy: "mend the disks and open the pool again; it is not changed until then",
		}
		return s.broken
	}
	return fmt.Errorf("committing generation %d, nothing has changed: %w", generation, cause)
}

// each does something on all members at once.
func (s *store) each(do func(i int, m *member) error) []error {
	return atOnce(len(s.members), func(i int) error { return do(i, s.members[i]) })
}

func (s *store) describe(what string, slots []int, errs []error) error {
	var out []error
	for i, err := range errs {
		if err != nil {
			out = append(out, s.members[i].slotError(what, slots[i], err))
		}
	}
	return errors.Join(out...)
}

func join(errs []error) error { return errors.Join(errs...) }

func slotName(i int) string { return string(rune('A' + i)) }
