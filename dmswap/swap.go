package dmswap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/failpoint"
)

// Swap is a swap that was checked and whose tables are preloaded. It ends with
// Execute or Abort; until then its volumes are busy for everything else. They
// go on serving I/O from their old positions.
type Swap struct {
	pool    *Pool
	names   string
	release func()

	mu     sync.Mutex
	sides  []side
	staged *staged // the metadata after the swap
	timing SwapTiming
	done   bool
}

// side is one volume of a swap.
type side struct {
	volume volumeRecord // as it was
	after  UUID         // position that it is to show
	ref    dm.Ref
	label  *Quarantine // of the position that it gives away
}

// PrepareSwap checks a swap of one or more pairs, loads the exchanged tables
// into the inactive slots of the volumes' devices and writes the body of the
// metadata after the swap: all that takes no pause.
//
// It refuses volumes that don't exist, are named twice, differ in size, are
// busy, in quarantine, have a snapshot open or another generation than expected.
// Degraded ones it takes: a swap only changes names, and is how the name of
// content that died with its disk shows a backup again. Whether somebody has a
// volume mounted is for the caller to know.
func (p *Pool) PrepareSwap(ctx context.Context, pairs []SwapPair) (*Swap, error) {
	if len(pairs) == 0 {
		return nil, errf(ErrInvalid, "name two volumes", "a swap of no volumes")
	}
	var refs, names []string
	for _, pair := range pairs {
		refs = append(refs, pair.A, pair.B)
	}
	list, release, err := p.claim("a swap", refs...)
	if err != nil {
		return nil, err
	}
	s := &Swap{pool: p, release: release}
	for i := range pairs {
		names = append(names, list[2*i].Name+" and "+list[2*i+1].Name)
	}
	s.names = strings.Join(names, ", ")
	start := time.Now()
	tables, err := s.check(pairs, list)
	if err == nil {
		err = s.preload(ctx, tables)
	}
	if err != nil {
		release()
		return nil, err
	}
	failpoint.Hit("swap: preloaded")
	if err := s.stage(); err != nil {
		err = fmt.Errorf("swap of %s: %w", s.names, err)
		return nil, errors.Join(err, s.Abort(ctx))
	}
	s.timing.Preload = time.Since(start)
	failpoint.Hit("swap: staged")
	return s, nil
}

// check fills sides and returns the tables they are to get.
func (s *Swap) check(pairs []SwapPair, list []volumeRecord) ([]dm.Table, error) {
	p := s.pool
	p.mu.RLock()
	defer p.mu.RUnlock()
	var tables []dm.Table
	for i, pair := range pairs {
		a, b := list[2*i], list[2*i+1]
		for j, want := range []uint64{pair.ExpectA, pair.ExpectB} {
			v := list[2*i+j]
			pos := p.meta.position(v.Position)
			if want != 0 && pos.Generation != want {
				return nil, &GenerationError{Volume: v.Name, Want: want, Have: pos.Generation}
			}
			if pos.Quarantine != nil {
				return nil, &QuarantinedError{Volume: v.Name, Quarantine: *pos.Quarantine}
			}
		}
		if a.Size != b.Size {
			return nil, errf(ErrInvalid, "grow the smaller one; only volumes of equal size can be swapped",
				"volume %s has %d bytes and volume %s has %d", a.Name, a.Size, b.Name, b.Size)
		}
		s.sides = append(s.sides,
			side{volume: a, after: b.Position, ref: p.ref(a.UUID, ""), label: pair.Quarantine},
			side{volume: b, after: a.Position, ref: p.ref(b.UUID, "")})
		tables = append(tables,
			p.place().volumeTable(&a, p.meta.position(b.Position)),
			p.place().volumeTable(&b, p.meta.position(a.Position)))
	}
	return tables, nil
}

func (s *Swap) preload(ctx context.Context, tables []dm.Table) error {
	for i, side := range s.sides {
		err := ctx.Err()
		if err == nil {
			err = s.pool.kernel.Load(side.ref, tables[i], false)
		}
		if err != nil {
			err = fmt.Errorf("swap of %s: preloading volume %s: %w", s.names, side.volume.Name, err)
			for _, loaded := range s.sides[:i] {
				err = errors.Join(err, s.pool.kernel.Clear(loaded.ref))
			}
			return err
		}
	}
	return nil
}

// Execute exchanges the positions: it suspends all devices at once, commits
// one generation of the metadata and resumes them. The caller has drained what
// is in flight above.
//
// When it returns an error nothing has been exchanged, the devices serve their
// old positions and the swap has ended, with two exceptions: an error that is
// [ErrCommitted] means that the exchange is on the disks, but a device could
// not be resumed; one that is [ErrDamaged] that it is unknown what the disks show,
// since every write of the commit failed and could not be taken back, or that a
// device is suspended. When ctx ends before the commit the swap is called off; the
// commit itself waits for a disk that hangs, when only that disk knows whether it
// counts.
func (s *Swap) Execute(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return errf(ErrInvalid, "prepare another one", "the swap of %s has ended", s.names)
	}
	s.done = true
	defer s.release()
	p := s.pool

	start := time.Now()
	// A commit that came between has made the staged one void: better written
	// again now than while the devices are suspended.
	err := s.stage()
	if err == nil {
		err = s.suspend(ctx)
	}
	if err == nil {
		err = s.mustBeLoaded()
	}
	s.timing.Suspend = time.Since(start)
	if err != nil {
		return errors.Join(fmt.Errorf("swap of %s, nothing has changed: %w", s.names, err), s.undo(ctx))
	}
	failpoint.Hit("swap: suspended")

	start = time.Now()
	err = s.commit(ctx)
	s.timing.Commit = time.Since(start)
	if err != nil {
		return errors.Join(fmt.Errorf("swap of %s: %w", s.names, err), s.undo(ctx))
	}
	failpoint.Hit("swap: committed")

	// From here on there is only forward, whatever becomes of ctx.
	ctx = context.WithoutCancel(ctx)
	start = time.Now()
	err = p.resumeAll(ctx, s.refs())
	s.timing.Resume = time.Since(start)
	if err != nil {
		return committed(fmt.Sprintf("the positions of %s are exchanged, but not all devices are resumed", s.names), err)
	}
	failpoint.Hit("swap: resumed")
	return nil
}

func (s *Swap) refs() []dm.Ref {
	list := make([]dm.Ref, len(s.sides))
	for i, side := range s.sides {
		list[i] = side.ref
	}
	return list
}

// suspend stops all devices, in parallel: each waits for a grace period of the
// kernel, and one wait is enough for all.
func (s *Swap) suspend(ctx context.Context) error {
	return parallel(s.refs(), func(ref dm.Ref) error {
		return s.pool.kernel.Suspend(ctx, ref, dm.SuspendOptions{})
	})
}

// mustBeLoaded refuses a device whose preloaded table is gone: a resume after the
// commit would make its old table live again, and nothing would tell.
func (s *Swap) mustBeLoaded() error {
	for _, side := range s.sides {
		info, err := s.pool.kernel.Info(side.ref)
		if err != nil {
			return fmt.Errorf("device of volume %s: %w", side.volume.Name, err)
		}
		if !info.Inactive {
			return errf(ErrBusy, "try again; if dmsetup or another program works on the devices of the pool, stop it",
				"the table that was loaded for volume %s is gone", side.volume.Name)
		}
	}
	return nil
}

// stage writes what the commit needs but for its headers, and does nothing when
// that has been done and still counts: another commit makes it void, because it
// takes the slots. The volumes are claimed, so what the swap changes is the same
// each time.
func (s *Swap) stage() error {
	p := s.pool
	if err := p.mu.TryLock(); err != nil {
		return err
	}
	defer p.mu.Unlock()
	return s.stageLocked()
}

func (s *Swap) stageLocked() (err error) {
	if s.staged != nil && s.staged == s.pool.store.staged {
		return nil
	}
	s.staged, err = s.pool.stage(func(m *metadata) error {
		for i := 0; i < len(s.sides); i += 2 {
			a, b := m.position(s.sides[i].after), m.position(s.sides[i+1].after)
			// Both get a generation that neither volume has shown: what somebody saw
			// behind one of them is told from all that it shows later.
			a.Generation = max(a.Generation, b.Generation) + 1
			b.Generation = a.Generation
		}
		for _, side := range s.sides {
			m.volume(side.volume.UUID).Position = side.after
			if side.label != nil {
				q := *side.label
				m.position(side.volume.Position).Quarantine = &q
			}
		}
		return nil
	})
	return err
}

// commit is the point of no return.
func (s *Swap) commit(ctx context.Context) error {
	p := s.pool
	if err := p.mu.TryLock(); err != nil {
		return err
	}
	defer p.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := s.stageLocked(); err != nil {
		return err
	}
	return p.publish(s.staged)
}

// undo brings the devices back to what they were before the swap. The preloaded
// tables go first: a resume would make them live.
func (s *Swap) undo(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	err := parallel(s.refs(), func(ref dm.Ref) error {
		if err := s.pool.kernel.Clear(ref); err != nil {
			// Better a device that waits than one that shows the wrong content.
			return err
		}
		return s.pool.kernel.Resume(ctx, ref)
	})
	if err != nil {
		return &Error{Kind: ErrDamaged, Message: "a device could not be brought back and may be suspended", Err: err, Remedy: "restart the daemon: opening the pool mends it"}
	}
	return nil
}

// Abort calls a prepared swap off. After Execute, or a second time, it does
// nothing.
func (s *Swap) Abort(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return nil
	}
	s.done = true
	defer s.release()
	return parallel(s.refs(), func(ref dm.Ref) error { return s.pool.kernel.Clear(ref) })
}

// Timing tells how long the phases took, as far as they have ended.
func (s *Swap) Timing() SwapTiming {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.timing
}

// DropCaches drops pages that somebody read through the cache of the dm devices
// themselves. The caller does so after Execute, when it has let I/O go on: it
// needs no pause. Nobody serves from there, so a failure harms nothing.
func (s *Swap) DropCaches() {
	for _, side := range s.sides {
		s.pool.mu.RLock()
		path := s.pool.devices[side.volume.UUID]
		s.pool.mu.RUnlock()
		if err := s.pool.dropCache(path); err != nil {
			s.pool.log.Warn("cached pages not dropped", "volume", side.volume.Name, "err", err)
		}
	}
}

// resumeAll puts loaded tables into force and tries again when that fails: it
// is called after a commit, when there is no way back.
func (p *Pool) resumeAll(ctx context.Context, refs []dm.Ref) error {
	const tries = 3
	return parallel(refs, func(ref dm.Ref) error {
		var err error
		for i := range tries {
			if i > 0 {
				time.Sleep(20 * time.Millisecond)
			}
			if err = p.kernel.Resume(ctx, ref); err == nil {
				return nil
			}
			p.log.Error("resuming a device after a commit", "device", ref.String(), "err", err)
		}
		return err
	})
}

// parallel does something with all devices at once and waits for all. The
// caller does its share: it would only wait otherwise, and one goroutine less
// has to find a thread.
func parallel(refs []dm.Ref, do func(dm.Ref) error) error {
	return errors.Join(atOnce(len(refs), func(i int) error { return do(refs[i]) })...)
}

// atOnce calls do for 0 to n-1 at once and waits for all.
func atOnce(n int, do func(i int) error) []error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := 1; i < n; i++ {
		all.Go(func() { errs[i] = do(i) })
	}
	if n > 0 {
		errs[0] = do(0)
	}
	all.Wait()
	return errs
}
