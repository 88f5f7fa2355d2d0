package dmswap

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// settleGrace is how long other disks that hang are waited for when one has
	// answered: they often hang together, and what does not answer is left out.
	settleGrace = time.Second
	// settleStep is how often a disk that hangs is tried again.
	settleStep = 50 * time.Millisecond
)

// settle waits for the answers that the headers of a commit owe, when none was
// written in time: one that is written is the commit, also after a restart. It
// returns the errors as they are then.
func (s *store) settle(st *staged, errs []error) []error {
	errs = slices.Clone(errs)
	type answer struct {
		k   int
		err error
	}
	owed, answers := 0, make(chan answer, len(errs))
	for k, err := range errs {
		var late *lateError
		if errors.As(err, &late) {
			owed++
			go func() { answers <- answer{k, <-late.answer} }()
		}
	}
	if owed == 0 {
		return errs
	}
	s.wait(s.describe("header", st, errs))
	defer s.goOn()
	s.unguard(func() {
		var enough <-chan time.Time
		for ; owed > 0; owed-- {
			select {
			case a := <-answers:
				if errs[a.k] = a.err; a.err == nil && enough == nil {
					enough = time.After(settleGrace)
				}
			case <-enough:
				return
			}
		}
	})
	return errs
}

// wait tells others that a commit waits for disks that hang.
func (s *store) wait(why error) {
	s.log.Error("a commit waits for a disk: without its answer it is not known whether it counts", "err", why)
	if s.stuck != nil {
		s.stuck(why)
	}
}

func (s *store) goOn() {
	if s.stuck != nil {
		s.stuck(nil)
	}
}

// takeBack undoes a commit that failed at all its headers: a failed write may
// still have reached the disk. Disks that hang are waited for here, too. A member
// on which nothing can be undone is left out, as long as another one can record
// that.
func (s *store) takeBack(st *staged, headers []error) error {
	cause := s.describe("header", st, headers)
	errs := s.each(st, func(k int, m *member) error {
		if errors.Is(headers[k], ErrBusy) {
			return nil // it was never sent
		}
		return s.untilAnswered(func() error { return m.disk.WriteDurable(alignedBuffer(blockSize), m.label.Slots[st.slots[k]]) })
	})
	err := join(errs)
	if err != nil && slices.Contains(errs, nil) {
		s.leaveOutFailed("header", st, errs)
		for err = s.commit(s.meta.clone()); errors.Is(err, ErrBusy) && s.broken == nil; err = s.commit(s.meta.clone()) {
			s.wait(err)
			s.unguard(func() { time.Sleep(settleStep) })
		}
	}
	s.goOn()
	if err != nil {
		s.broken = &Error{
			Kind: ErrDamaged, Message: fmt.Sprintf("it is unknown whether generation %d of the metadata is on the disks", st.meta.Generation), Err: errors.Join(cause, err),
			Remedy: "mend the disks and open the pool again; it is not changed until then",
		}
		return s.broken
	}
	return fmt.Errorf("committing generation %d, nothing has changed: %w", st.meta.Generation, cause)
}

// untilAnswered makes a request of a disk, again and again while it hangs.
func (s *store) untilAnswered(request func() error) error {
	err := request()
	if errors.Is(err, ErrBusy) {
		s.wait(err)
	}
	for ; errors.Is(err, ErrBusy); err = request() {
		time.Sleep(settleStep)
	}
	return err
}
