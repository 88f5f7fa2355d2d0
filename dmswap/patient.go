package dmswap

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"
)

// diskPatience is how long a member may take for one request of the pool's own.
// The kernel gives a request to an NVMe or SCSI disk up after 30 s; whoever asks
// for a change of the pool should know before.
const diskPatience = 10 * time.Second

// patientDisk bounds how long a member's requests are waited for. A disk can hang:
// its driver waits for it, or somebody has suspended it. The kernel can't call a
// request off, so it is left behind, and until it ends every other request fails
// at once: nothing may overtake it. After that the disk is as good as before.
//
// It is safe for concurrent use.
type patientDisk struct {
	memberDisk
	path     string
	patience time.Duration

	mu   sync.Mutex
	late int       // requests that were left behind and have not ended
	what string    // the first of them
	from time.Time // when it was made
}

// lateError is the error of a request that was left behind. Who has to know how it
// ends finds that in answer.
type lateError struct {
	error
	answer <-chan error
}

func (e *lateError) Unwrap() error { return e.error }

func patient(d memberDisk, path string, patience time.Duration) *patientDisk {
	return &patientDisk{memberDisk: d, path: path, patience: cmp.Or(patience, diskPatience)}
}

// do makes a request in a goroutine of its own, which may outlive it.
func (d *patientDisk) do(ctx context.Context, what string, patience time.Duration, request func() error) error {
	d.mu.Lock()
	err := d.hung()
	d.mu.Unlock()
	if err != nil {
		return err
	}
	from := time.Now()
	done := make(chan error) // taken, or the request is late
	gaveUp := make(chan struct{})
	answer := make(chan error, 1)
	go func() {
		err := request()
		select {
		case done <- err:
		case <-gaveUp:
			d.mu.Lock()
			d.late--
			d.mu.Unlock()
			answer <- err
		}
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		err = fmt.Errorf("disk %s: %s was not waited for: %w", d.path, what, context.Cause(ctx))
	case <-timer.C:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.late++; d.late == 1 {
		d.what, d.from = what, from
	}
	close(gaveUp)
	if err != nil {
		return err
	}
	return &lateError{d.hung(), answer}
}

// hung is the error of a disk that owes an answer, or nil. The caller holds mu.
func (d *patientDisk) hung() error {
	if d.late == 0 {
		return nil
	}
	return errf(ErrBusy, "look at the disk (dmesg, dmsetup info); everything goes on when it answers",
		"disk %s has not answered %s for %s", d.path, d.what, time.Since(d.from).Round(time.Second))
}

func (d *patientDisk) ReadAt(p []byte, off int64) (int, error) {
	// A request that was left behind may still write to its buffer.
	b := alignedBuffer(len(p))
	read := make(chan int, 1)
	err := d.do(context.Background(), "a read", d.patience, func() error {
		n, err := d.memberDisk.ReadAt(b, off)
		read <- n
		return err
	})
	select {
	case n := <-read:
		return copy(p, b[:n]), err
	default:
		return 0, err
	}
}

func (d *patientDisk) WriteAt(p []byte, off int64) (int, error) {
	err := d.do(context.Background(), "a write", d.patience, func() error {
		_, err := d.memberDisk.WriteAt(p, off)
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (d *patientDisk) WriteDurable(p []byte, off int64) error {
	return d.do(context.Background(), "a write", d.patience, func() error { return d.memberDisk.WriteDurable(p, off) })
}

func (d *patientDisk) Sync() error {
	return d.do(context.Background(), "a flush", d.patience, d.memberDisk.Sync)
}

// Zero works in pieces, of which each may take longer than other requests. The
// end of ctx ends the wait, too.
func (d *patientDisk) Zero(ctx context.Context, off, length int64) error {
	const step = 64 << 20
	for length > 0 {
		at, n := off, min(length, step)
		err := d.do(ctx, "zeroing", 6*d.patience, func() error { return d.memberDisk.Zero(ctx, at, n) })
		if err != nil {
			return err
		}
		off += n
		length -= n
	}
	return nil
}
