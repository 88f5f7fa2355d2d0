package dmswap

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/failpoint"
)

// store keeps the metadata of one pool on its members. It is not safe for
// concurrent use; [Pool] calls it under its lock.
type store struct {
	members []*member
	log     *slog.Logger
	// meta is what was committed last.
	meta *metadata
	// last is the highest generation that was ever tried, so that a number is
	// never used for two different contents.
	last uint64
	// staged is what publish may publish: the newest, until something else has
	// been written into its slots.
	staged *staged
	// broken is set when it is unknown which generation the members hold.
	broken error
	// unguarded runs what waits for the disks. The pool lets readers in meanwhile;
	// unless set, it just runs.
	unguarded func(io func())
	// stuck, if set, is told what a commit waits for that is past the point where it
	// could be refused, and nil when it goes on.
	stuck func(why error)
}

// member is a disk of a pool.
type member struct {
	disk   disk      // nil when it is missing
	device dm.Device // of the disk
	path   string
	label  label
	// newest is the slot that holds the committed generation, or -1 when this
	// member does not have it: then spare says which slot to write.
	newest int
	spare  int
	// out says why the member takes no part in commits, or is nil.
	out error
	// labelErr says what is wrong with the label on the disk, when the member
	// was recognised by its metadata instead.
	labelErr error
}

func (m *member) target() int {
	if m.newest >= 0 {
		return 1 - m.newest
	}
	return m.spare
}

// out tells whether a member takes no part in commits.
func (s *store) out(i int) bool { return s.members[i].out != nil }

// leaveOut keeps a member from taking part. The next commit records it.
func (s *store) leaveOut(i int, why error) {
	s.members[i].out = why
	s.log.Error("member is left out: the pool is degraded", "disk", s.members[i].path, "err", why)
}

// present lists the members that take part in commits.
func (s *store) present() []int {
	var list []int
	for i, m := range s.members {
		if m.out == nil {
			list = append(list, i)
		}
	}
	return list
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

// staged is a generation whose body is durable on every member that takes part.
// What it lacks is one block per member, which publish writes. A staged
// generation that is never published is a slot that is not valid; nothing has to
// be taken back.
type staged struct {
	meta    *metadata
	members []int    // that take part
	slots   []int    // of those
	headers [][]byte // of those
}

// settleLabels puts all members in use again when one of them is: a crash came
// while the pool was being made or deleted.
func (s *store) settleLabels() error {
	used, unfinished := 0, 0
	for _, m := range s.members {
		switch {
		case m.disk == nil || m.labelErr != nil:
		case m.label.Unfinished:
			unfinished++
		default:
			used++
		}
	}
	switch {
	case unfinished == 0:
		return nil
	case used == 0:
		return errf(ErrNoPool, "create a pool on the disks", "%s: the pool was being made or deleted: there is nothing of it", pathsText(s.members))
	}
	s.log.Warn("the pool was being made or deleted; it stays", "unfinished_members", unfinished)
	return s.writeLabels(false)
}

// stage does everything of a commit that can be done before its point of no
// return. Only the newest staged generation can be published: another one has
// written over its slots. A member that can't be written to is left out, as
// long as another one can.
func (s *store) stage(meta *metadata) (*staged, error) {
	s.staged = nil
	if s.broken != nil {
		return nil, s.broken
	}
	base := *meta
	for {
		*meta = base
		s.number(meta)
		st, errs, err := s.stageOn(meta, s.present())
		switch {
		case err != nil:
			return nil, err
		case join(errs) == nil:
			s.staged = st
			failpoint.Hit("commit: staged")
			return st, nil
		case !slices.Contains(errs, nil), errors.Is(join(errs), ErrBusy):
			// A disk that hangs may come back, and one that does not has errors in
			// the end: it is not left out for being slow.
			return nil, fmt.Errorf("committing generation %d, nothing has changed: %w", meta.Generation, s.describe("body", st, errs))
		}
		s.leaveOutFailed("body", st, errs)
	}
}

// number gives metadata its generation, and its epoch when it is to be committed
// by other members than the last was. A new epoch leaves a number free: a member
// that is left out may hold a header of the one before, of a commit that nobody
// was answered. That is not so when those that go on took no part in the last
// epoch, and only were brought up to date: then there may be answered ones.
func (s *store) number(meta *metadata) {
	meta.Previous, meta.Generation = meta.Generation, s.last+1
	if meta.sameMembers(s.out) {
		return
	}
	first := meta.Previous + 1
	if slices.ContainsFunc(s.present(), func(i int) bool { return meta.missing(i) == nil }) {
		first = max(first, s.last) + 1
	}
	meta.Generation = max(meta.Generation, first)
	holds := uint64(0)
	if s.meta != nil {
		holds = s.meta.Previous // it may have failed at the last one
	}
	meta.beginEpoch(first, holds, s.out)
}

func (s *store) stageOn(meta *metadata, members []int) (st *staged, errs []error, err error) {
	if err := meta.check(); err != nil {
		return nil, nil, fmt.Errorf("refusing to commit inconsistent metadata: %w", err)
	}
	body, err := meta.encode()
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the metadata: %w", err)
	}
	for _, i := range members {
		if size := s.members[i].label.SlotSize; int64(len(body)) > size-slotBody {
			return nil, nil, errTooLarge(len(body), size)
		}
	}
	s.last = meta.Generation
	st = &staged{meta: meta, members: members}
	for _, i := range members {
		m := s.members[i]
		st.slots = append(st.slots, m.target())
		st.headers = append(st.headers, m.header(meta.Generation, body))
	}
	errs = s.each(st, func(k int, m *member) error { return writeBody(m.disk, &m.label, st.slots[k], body) })
	return st, errs, nil
}

// publish makes a staged generation the pool's. When it returns nil the new
// generation counts, also after a crash. When it returns an error the old one
// does, unless the store is broken.
//
// It waits for disks that hang, however long they take, when only they know which
// generation that is: no member has written its header, and one may still.
//
// One member whose header was written makes the commit: from then on opening
// the pool finds the new generation. A member that fails at its header while
// another succeeds is left out, by a commit of its own before the answer: alone
// it would bring the old world back.
func (s *store) publish(st *staged) error {
	if s.staged != st {
		return fmt.Errorf("generation %d of the metadata is not staged any more", st.meta.Generation)
	}
	s.staged = nil
	errs := s.writeHeaders(st)
	if !slices.Contains(errs, nil) {
		errs = s.settle(st, errs)
	}
	if !slices.Contains(errs, nil) {
		return s.takeBack(st, errs)
	}
	s.meta = st.meta
	for k, i := range st.members {
		m := s.members[i]
		if errs[k] == nil {
			m.newest = st.slots[k]
		} else {
			m.newest, m.spare = -1, st.slots[k]
		}
	}
	failpoint.Hit("commit: published")
	if join(errs) == nil {
		return nil
	}
	s.leaveOutFailed("header", st, errs)
	if err := s.commit(s.meta.clone()); err != nil {
		// What was asked for is committed, on what members are left.
		s.broken = &Error{
			Kind: ErrDamaged, Message: "a member is behind, and the others could not record that", Err: err,
			Remedy: "mend the disks and open the pool again; it is not changed until then",
		}
		s.log.Error("pool is not changed any more", "err", s.broken)
	}
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

// writeHeaders makes the slots valid.
func (s *store) writeHeaders(st *staged) []error {
	now := time.Now()
	for _, h := range st.headers {
		stampHeader(h, now)
	}
	return s.each(st, func(k int, m *member) error {
		return m.disk.WriteDurable(st.headers[k], m.label.Slots[st.slots[k]])
	})
}

// each does something at once on all members that take part in a commit; k is
// the member's place in it.
func (s *store) each(st *staged, do func(k int, m *member) error) (errs []error) {
	s.unguard(func() {
		errs = atOnce(len(st.members), func(k int) error { return do(k, s.members[st.members[k]]) })
	})
	return errs
}

func (s *store) unguard(io func()) {
	if s.unguarded == nil {
		io()
		return
	}
	s.unguarded(io)
}

func (s *store) leaveOutFailed(what string, st *staged, errs []error) {
	for k, err := range errs {
		if err != nil {
			i := st.members[k]
			s.leaveOut(i, s.members[i].slotError(what, st.slots[k], err))
		}
	}
}

func (s *store) describe(what string, st *staged, errs []error) error {
	var out []error
	for k, err := range errs {
		if err != nil {
			out = append(out, s.members[st.members[k]].slotError(what, st.slots[k], err))
		}
	}
	return errors.Join(out...)
}

func join(errs []error) error { return errors.Join(errs...) }

func slotName(i int) string { return string(rune('A' + i)) }
