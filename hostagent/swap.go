package hostagent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/failpoint"
)

// defaultAnswerWait is that of [RecoverOptions].
const defaultAnswerWait = 2 * time.Minute

// unknownError: nobody could say whether the swap happened.
type unknownError struct{ swap, look error }

func (e *unknownError) Error() string {
	return fmt.Sprintf("the swap's answer was lost (%v), and whether it happened could not be found out: %v", e.swap, e.look)
}

func (e *unknownError) Unwrap() []error { return []error{e.swap, e.look} }

// swap exchanges all pairs in one request.
func (r *recovery) swap(ctx context.Context) error {
	req := api.SwapRequest{Busy: r.o.Busy, HoldFor: r.o.HoldFor.Seconds(), AllowHolders: r.o.AllowHolders}
	for i, v := range r.volumes {
		s := r.spares[i].Volume
		req.Pairs = append(req.Pairs, api.SwapPair{
			A: v.UUID, B: s.UUID, ExpectA: v.Position.Generation, ExpectB: s.Position.Generation,
			Quarantine: r.label(full(v)),
		})
	}
	var result api.SwapResult
	// A snapshot that is just being removed, for instance, passes.
	err := retryBusy(ctx, func() (err error) {
		result, err = r.o.Service.Swap(ctx, req)
		return err
	})
	failpoint.Hit("recover: swap answered")
	if err == nil {
		r.result.Swap = result
		if result.Warning != "" {
			r.warn("%s", result.Warning)
		}
		return nil
	}
	return r.settle(ctx, err)
}

// settle finds out whether a swap that came back with an error happened. An
// answer of the daemon and a lost answer are treated the same: the positions
// are the truth. Nil means that it did happen.
func (r *recovery) settle(ctx context.Context, cause error) error {
	// The caller may have given up; what the volumes show matters still.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.o.AnswerWait)
	defer cancel()
	var swapped bool
	var last error
	err := poll(ctx, func() (bool, error) {
		swapped, last = r.swapped(ctx)
		if last == nil {
			return true, nil
		}
		if answered(last) {
			return true, last
		}
		return false, nil
	})
	if err != nil {
		return &unknownError{cause, errors.Join(last, err)}
	}
	if !swapped {
		return cause
	}
	r.warn("the volumes are swapped, but the answer to the request was lost: %v", cause)
	return nil
}

// swapped compares what the volumes show with what they showed before. In one
// commit all pairs change or none, so anything else is somebody else's doing.
func (r *recovery) swapped(ctx context.Context) (bool, error) {
	good, failed := 0, 0
	for i, v := range r.volumes {
		now, err := r.o.Service.Volume(ctx, v.UUID)
		if err != nil {
			return false, err
		}
		if now.State == api.StateBusy {
			return false, errStillBusy
		}
		switch now.Position.ID {
		case r.result.Volumes[i].GoodPosition:
			good++
		case v.Position.ID:
			failed++
		}
	}
	switch len(r.volumes) {
	case good:
		// Not known without the answer: how long it took, and whether the
		// page cache was proven to agree with the disk.
		r.result.Swap = api.SwapResult{Busy: r.o.Busy}
		for i, v := range r.volumes {
			r.result.Swap.Pairs = append(r.result.Swap.Pairs, api.SwappedPair{A: full(v), B: r.result.Volumes[i].Spare})
		}
		return true, nil
	case failed:
		return false, nil
	}
	return false, &api.Error{Code: api.CodeGeneration, Message: "the volumes show neither what they showed before nor what was restored: somebody else swapped them"}
}

var errStillBusy = errors.New("the volumes are busy still")

// answered tells an answer of the daemon from silence.
func answered(err error) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Code != api.CodeUnavailable && e.Code != api.CodeBusy
}

// label is what the failed data of a volume is known by.
func (r *recovery) label(volume string) *api.Quarantine {
	return &api.Quarantine{
		Reason: r.reason(), Time: time.Now().UTC(), Volume: volume,
		Job: r.o.Job, Step: r.o.Step, ExitCode: r.o.ExitCode, Backup: r.backup.ID,
	}
}

// quarantine makes sure that the failed data bears its label: it came with the
// swap. The volumes are back by now, so what goes wrong here is a warning.
func (r *recovery) quarantine(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.o.AnswerWait)
	defer cancel()
	for i, s := range r.spares {
		v := &r.result.Volumes[i]
		req := api.QuarantineRequest{Quarantine: *r.label(v.Volume)}
		var last error
		err := poll(ctx, func() (bool, error) {
			now, err := r.o.Service.Volume(ctx, s.Volume.UUID)
			if err == nil {
				if now.Position.ID != v.FailedPosition {
					return true, errors.New("it does not show the failed data any more")
				}
				if now.Position.Quarantine != nil {
					return true, nil
				}
				req.Generation = now.Position.Generation
				_, err = r.o.Service.Quarantine(ctx, s.Volume.UUID, req)
			}
			if last = err; err == nil || answered(err) {
				return true, err
			}
			return false, nil
		})
		if err != nil {
			r.warn("the failed data of %s is under the name %s, but could not be put in quarantine (do it with: swapback volume quarantine %s): %v",
				v.Volume, v.Spare, v.Spare, errors.Join(last, err))
			continue
		}
		v.Quarantined = true
		failpoint.Hit("recover: quarantined")
	}
	return nil
}

// reason is what the label says. What a step or a person said can be anything;
// failed data whose label is refused would stay writable.
func (r *recovery) reason() string {
	if reason := api.Reason(r.o.Reason); reason != "" {
		return reason
	}
	return "replaced by backup " + r.backup.ID
}
