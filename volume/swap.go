package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/ublk"
)

// defaultHold is how long I/O may wait at the gate when neither the caller nor
// [Options] name a time: well below the 30 s after which an NVMe host gives a command up.
const defaultHold = 10 * time.Second

// swapOperation is what the volumes of a swap are claimed for; a volume claimed
// so shows as busy.
const swapOperation = "a swap"

// swap is one swap request on its way.
type swap struct {
	c       *Controller
	req     api.SwapRequest
	targets []target       // A, B, A, B, …
	served  []int          // indexes of the targets that are attached
	devices []*ublk.Device // of those
	helper  Helper         // has the devices open, from before the guards to after them
	guards  []*os.File     // exclusive opens of the devices, kept through the swap
	doors   *doors         // the devices, and the volumes' namespaces for other hosts
	held    []api.Holder
	paused  bool   // the gates were closed
	outcome string // for the metrics, unless all went well
	result  api.SwapResult
}

// Swap implements [api.Service]. The order of its steps is the one of
// docs/architecture.md. Up to the commit every failure leaves the old world;
// from the commit on every failure is rolled forward.
func (c *Controller) Swap(ctx context.Context, req api.SwapRequest) (api.SwapResult, error) {
	s := &swap{c: c, req: req, outcome: swapRefused}
	s.result.Started = time.Now()
	err := s.run(ctx)
	c.metrics.swapped(s.outcome, s.paused, &s.result)
	if err != nil {
		return api.SwapResult{}, err
	}
	return s.result, nil
}

func (s *swap) run(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	var refs []string
	for _, p := range s.req.Pairs {
		refs = append(refs, p.A, p.B)
	}
	targets, release, err := s.c.claim(swapOperation, refs...)
	if err != nil {
		return err
	}
	defer release()
	s.targets = targets
	defer s.closeHelper()
	defer s.closeGuards()
	failpoint.Hit("swap: claimed")
	if err := s.preflight(ctx); err != nil {
		return err
	}
	failpoint.Hit("swap: checked")
	if err := s.exchange(ctx); err != nil {
		return err
	}
	s.outcome = swapCommitted
	// The positions are exchanged, whatever happens to the client now.
	s.verify(context.WithoutCancel(ctx))
	failpoint.Hit("swap: verified")
	s.log()
	return nil
}

func (s *swap) check() error {
	if len(s.req.Pairs) == 0 {
		return &api.Error{Code: api.CodeInvalid, Message: "swap: no volumes named"}
	}
	switch s.req.Busy {
	case "":
		s.req.Busy = api.BusyHold
	case api.BusyHold, api.BusyRefuse:
	default:
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("swap: busy policy %q", s.req.Busy), Remedy: "use hold or refuse"}
	}
	if s.req.HoldFor < 0 || s.req.HoldFor > 3600 {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("swap: hold-for of %g s", s.req.HoldFor), Remedy: "use 0 to 3600 seconds"}
	}
	if s.req.HoldFor == 0 {
		s.req.HoldFor = s.c.opt.HoldFor.Seconds()
	}
	s.result.Busy = s.req.Busy
	return nil
}

// exchange is the swap itself: preload, busy, drain, suspend, commit, resume,
// release. What needs no pause is done before the gate closes.
func (s *swap) exchange(ctx context.Context) error {
	// Positions can only be exchanged within a pool.
	pool := s.targets[0].pool
	for _, t := range s.targets {
		if t.pool != pool {
			return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("swap: %s and %s are in different pools", s.targets[0], t), Remedy: "restore a backup of the one onto a volume in the other's pool"}
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(s.req.HoldFor*float64(time.Second)), errHoldOver)
	defer cancel()

	for _, t := range s.targets {
		if _, err := s.c.changesOf(t); err != nil {
			return err
		}
	}
	prepared, err := pool.PrepareSwap(ctx, s.pairs())
	if err != nil {
		return fromPool("swap refused", err)
	}
	// The mark has to be there before udev can look at the failed content.
	if err := s.markLabelled(true); err != nil {
		return errors.Join(err, prepared.Abort(context.WithoutCancel(ctx)))
	}
	held, refused := s.doors.stopped()
	s.paused = true
	busy := time.Now()
	if s.req.Busy == api.BusyRefuse {
		s.doors.refuse()
		failpoint.Hit("swap: refusing")
	} else {
		s.doors.hold()
		failpoint.Hit("swap: holding")
	}
	err = s.drain(ctx)
	if err == nil {
		failpoint.Hit("swap: drained")
		err = prepared.Execute(ctx)
	} else {
		err = errors.Join(err, prepared.Abort(context.WithoutCancel(ctx)))
	}
	if err == nil || errors.Is(err, dmswap.ErrCommitted) {
		s.c.moveChanges(s.targets)
		s.refuseWrites()
		failpoint.Hit("swap: change maps moved")
	}
	s.doors.release()
	failpoint.Hit("swap: released")
	s.result.Pause = time.Since(busy).Seconds()
	nowHeld, nowRefused := s.doors.stopped()
	s.result.Held, s.result.Refused = nowHeld-held, nowRefused-refused
	if err != nil {
		if !errors.Is(err, dmswap.ErrCommitted) {
			err = errors.Join(err, s.markLabelled(false))
		}
		return s.failed(ctx, err)
	}
	s.showReadOnly()
	prepared.DropCaches()
	failpoint.Hit("swap: caches dropped")
	s.collect(prepared)
	return nil
}

var errHoldOver = errors.New("the time that I/O may be held ran out")

// failed explains why the positions were not exchanged.
func (s *swap) failed(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, dmswap.ErrCommitted):
		s.outcome = swapUnfinished
		return fromPool("swap committed, but not finished", err)
	case api.CodeOf(err) == api.CodeInUse:
		s.outcome = swapCalledOff
		return err
	case errors.Is(err, dmswap.ErrDamaged):
		// Whether anything has changed is not known, or not all I/O goes on.
	case errors.Is(context.Cause(ctx), errHoldOver):
		s.outcome = swapCalledOff
		return &api.Error{
			Code:    api.CodeBusy,
			Message: fmt.Sprintf("swap called off: requests were still in flight after %g s; nothing has changed and I/O goes on", s.req.HoldFor),
			Remedy:  "try again when there is less I/O, or give a longer --hold-for",
		}
	}
	s.outcome = swapFailed
	return fromPool("swap failed", err)
}

func (s *swap) pairs() []dmswap.SwapPair {
	list := make([]dmswap.SwapPair, len(s.req.Pairs))
	for i, p := range s.req.Pairs {
		list[i] = dmswap.SwapPair{
			A: s.targets[2*i].uuid(), B: s.targets[2*i+1].uuid(),
			ExpectA: p.ExpectA, ExpectB: p.ExpectB,
		}
		if p.Quarantine != nil {
			q := dmswap.Quarantine(*p.Quarantine)
			if q.Time.IsZero() {
				q.Time = time.Now().UTC()
			}
			list[i].Quarantine = &q
		}
	}
	return list
}

// labelled are the volumes that show failed content after the swap, with a block
// device.
func (s *swap) labelled() (list []target) {
	for i, p := range s.req.Pairs {
		if e := s.c.export(s.targets[2*i+1]); p.Quarantine != nil && e != nil && e.dev != nil {
			list = append(list, s.targets[2*i+1])
		}
	}
	return list
}

// markLabelled makes or removes the marks by which udev leaves devices alone.
func (s *swap) markLabelled(quarantined bool) error {
	for _, t := range s.labelled() {
		if err := s.c.markQuarantine(s.c.export(t).dev.ID(), quarantined); err != nil {
			return err
		}
	}
	return nil
}

// refuseWrites protects failed content in the server, while the gates are closed.
func (s *swap) refuseWrites() {
	for _, t := range s.labelled() {
		s.c.export(t).dev.SetReadOnly(true)
	}
	for i, p := range s.req.Pairs {
		if r := s.c.door(s.targets[2*i+1]); p.Quarantine != nil && r != nil {
			r.ns.SetReadOnly(true)
		}
	}
}

// showReadOnly tells the kernel, too: now that the gates are open its devices can
// be opened.
func (s *swap) showReadOnly() {
	for _, t := range s.labelled() {
		if err := s.c.setReadOnly(t, true, true); err != nil {
			s.warn(fmt.Sprintf("%s refuses writes, but its device does not show that: %v", t, err))
		}
	}
}

// drain waits until nothing is in flight below the closed gates. A host that has
// connected since the preflight may have read what is about to change.
func (s *swap) drain(ctx context.Context) error {
	defer s.phase(&s.result.Phases.Drain)()
	if err := s.doors.drain(ctx); err != nil {
		return err
	}
	if s.req.AllowHolders {
		return nil
	}
	return s.c.refuseHosts(s.req.Released, s.targets...)
}

// collect fills the result from what the swap left behind.
func (s *swap) collect(prepared *dmswap.Swap) {
	timing := prepared.Timing()
	p := &s.result.Phases
	p.Preload, p.Suspend, p.Commit, p.Resume = timing.Preload.Seconds(), timing.Suspend.Seconds(), timing.Commit.Seconds(), timing.Resume.Seconds()
	for i := 0; i < len(s.targets); i += 2 {
		a, b := s.targets[i], s.targets[i+1]
		pair := api.SwappedPair{A: a.String(), B: b.String()}
		if v, err := a.pool.Volume(a.uuid()); err == nil {
			pair.GenerationA = v.Position.Generation
		}
		if v, err := b.pool.Volume(b.uuid()); err == nil {
			pair.GenerationB = v.Position.Generation
		}
		s.result.Pairs = append(s.result.Pairs, pair)
	}
}

// verify drops cached pages of the old positions and proves that they are
// gone. The swap is committed, so what goes wrong here is a warning.
func (s *swap) verify(ctx context.Context) {
	defer s.phase(&s.result.Phases.Verify)()
	var warnings []string
	s.closeGuards()
	if s.helper != nil {
		ctx, cancel := s.whileServed(ctx)
		defer cancel()
		if err := s.helper.CheckAllCoherent(ctx); err != nil {
			warnings = append(warnings, err.Error())
		}
	}
	s.result.Coherent = len(warnings) == 0
	if len(warnings) > 0 {
		text := "the positions are exchanged, but cached data could not be proven fresh: " + strings.Join(warnings, "; ")
		if len(s.held) > 0 {
			text += "; somebody holds the device and may be writing"
		}
		s.warn(text)
	}
}

// warn adds to what is not as it should be although the swap is committed.
func (s *swap) warn(text string) {
	if s.result.Warning != "" {
		text = s.result.Warning + "; " + text
	}
	s.result.Warning = text
}

func (s *swap) log() {
	for _, p := range s.result.Pairs {
		s.c.log.Info("swapped", "a", p.A, "b", p.B, "generation_a", p.GenerationA, "generation_b", p.GenerationB,
			"pause", time.Duration(s.result.Pause*float64(time.Second)), "held", s.result.Held, "refused", s.result.Refused,
			"coherent", s.result.Coherent, "holders_allowed", len(s.held))
	}
	if s.result.Warning != "" {
		s.c.log.Warn(s.result.Warning)
	}
}

// phase starts a clock; the function it returns stores the seconds gone by.
func (s *swap) phase(seconds *float64) func() {
	start := time.Now()
	return func() { *seconds = time.Since(start).Seconds() }
}
