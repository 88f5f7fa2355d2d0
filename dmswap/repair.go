package dmswap

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/swapback/swapback/dmswap/dm"
)

// RepairOptions are the options of [Pool.Repair].
type RepairOptions struct {
	// KeepDir is where the metadata is kept before anything is written;
	// [DefaultKeepDir] unless set.
	KeepDir string
}

// Repair checks the pool and mends what can be mended without a decision: labels
// and metadata slots, members that can be written to again, reservations of
// nobody, and devices of volumes that are not busy. What is left is in the
// report's Problems. When there is nothing to mend nothing is written; else the
// metadata is kept in a file first. The error is about the repair itself.
func (p *Pool) Repair(ctx context.Context, opt RepairOptions) (Report, error) {
	before, err := p.Check(ctx)
	if err != nil || before.OK() {
		return before, err
	}
	r := &repairer{pool: p}
	if r.kept, err = p.keepDump(opt.KeepDir); err != nil {
		return before, fmt.Errorf("pool %s not repaired: %w", p.name, err)
	}
	for _, mend := range []func(context.Context) error{r.members, r.labels, r.slots, r.reservations, r.volumes, r.strays} {
		if err := ctx.Err(); err != nil {
			return before, err
		}
		if err := mend(ctx); err != nil {
			r.failed = append(r.failed, err.Error())
		}
	}
	after, err := p.Check(ctx)
	after.Found, after.Mended, after.Kept = before.Problems, r.mended, r.kept
	for _, text := range r.failed {
		after.Problems = append(after.Problems, "not mended: "+text)
	}
	return after, err
}

func (p *Pool) keepDump(dir string) (string, error) {
	d, err := p.Dump()
	if err != nil {
		return "", err
	}
	text, err := d.Encode()
	if err != nil {
		return "", err
	}
	return keepFile(dir, fmt.Sprintf("%s-generation%d", p.name, d.Generation()), ".meta", text)
}

// repairer mends one kind of damage after the other.
type repairer struct {
	pool   *Pool
	mended []string
	failed []string
	kept   string
}

func (r *repairer) mend(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.pool.log.Warn("mended", "what", text)
	r.mended = append(r.mended, text)
}

// members takes those back that can be written to again.
func (r *repairer) members(ctx context.Context) error {
	back, err := r.pool.Rejoin(ctx, nil)
	for _, i := range back {
		r.mend("member %d takes part again", i)
	}
	return err
}

// labels writes those anew that differ from what they were.
func (r *repairer) labels(context.Context) error {
	p := r.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, m := range p.store.members {
		if m.out != nil {
			continue
		}
		want := m.label.encode()
		if l, err := readLabel(m.disk); err == nil && bytes.Equal(l.encode(), want) {
			continue
		}
		if err := m.disk.WriteDurable(want, labelOffset); err != nil {
			errs = append(errs, fmt.Errorf("label of disk %s: %w", m.path, err))
			continue
		}
		m.labelErr = nil
		r.mend("disk %s: its label was written anew", m.path)
	}
	return errors.Join(errs...)
}

// slots commits twice, which writes both slots of all members, when the check
// finds something in them.
func (r *repairer) slots(context.Context) error {
	p := r.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	body, err := p.meta.encode()
	if err != nil {
		return err
	}
	c := &checker{pool: p}
	for _, m := range p.store.members {
		if m.out == nil {
			c.slots(m, body)
		}
	}
	if c.report.OK() {
		return nil
	}
	for range 2 {
		if err := p.commit(func(*metadata) error { return nil }); err != nil {
			return err
		}
	}
	r.mend("both metadata slots of all members were written anew, as generations %d and %d", p.meta.Previous, p.meta.Generation)
	return nil
}

// reservations frees what is reserved for nobody.
func (r *repairer) reservations(context.Context) error {
	p := r.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lostPending() {
		clear(p.pending)
		r.mend("extents that were reserved for an operation that has ended are free")
	}
	dropped, err := p.dropReservations()
	if dropped {
		r.mend("extents that were reserved for a snapshot that is not open are free")
	}
	return err
}

// lostPending tells whether extents are reserved although no operation is under
// way that could have reserved them. The caller holds mu.
func (p *Pool) lostPending() bool {
	return len(p.pending) > 0 && len(p.busy) == 0 && len(p.naming) == 0
}

// volumes gives devices their tables. Those of busy volumes and of volumes with
// a snapshot are left alone.
func (r *repairer) volumes(ctx context.Context) error {
	var errs []error
	for _, w := range r.pool.wantedDevices() {
		if err := r.volume(ctx, w.volume.UUID); err != nil {
			errs = append(errs, fmt.Errorf("device of volume %s: %w", w.volume.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (r *repairer) volume(ctx context.Context, uuid UUID) error {
	p := r.pool
	_, release, err := p.claim("mending its device", uuid)
	if errors.Is(err, ErrBusy) || errors.Is(err, ErrNotFound) {
		return nil // the check leaves it out, or it is gone
	}
	if err != nil {
		return err
	}
	defer release()
	var w wanted
	for _, each := range p.wantedDevices() {
		if each.volume.UUID == uuid {
			w = each
		}
	}
	ctx = context.WithoutCancel(ctx)
	info, err := p.kernel.Info(w.ref)
	if errors.Is(err, dm.ErrNotFound) {
		if info, err = p.createDevice(ctx, w.volume, "", w.table); err == nil {
			r.mend("volume %s: its device %s was made anew; detach and attach the volume to serve it", w.volume.Name, info.Path())
		}
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.devices[uuid] = info.Path()
	p.mu.Unlock()
	again, why, err := p.prepareDevice(ctx, w)
	if err != nil {
		return err
	}
	if again {
		err = p.kernel.Resume(ctx, w.ref)
	}
	if err == nil && why != "" {
		r.mend("volume %s: its device %s, and was brought to the map", w.volume.Name, firstLine(why))
		if derr := p.dropCache(info.Path()); derr != nil {
			p.log.Warn("cached pages not dropped", "volume", w.volume.Name, "err", derr)
		}
	}
	return err
}

func firstLine(s string) string {
	line, _, more := bytes.Cut([]byte(s), []byte("\n"))
	if more {
		return string(line) + " …"
	}
	return string(line)
}

// strays removes devices that belong to nothing and that nobody has open.
func (r *repairer) strays(context.Context) error {
	p := r.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	list, err := p.strays()
	if err != nil {
		return err
	}
	var errs []error
	for _, suffix := range []string{suffixSnap, suffixCOW, suffixReal, ""} {
		for _, l := range list {
			if strayKind(l.UUID) != suffix {
				continue
			}
			err := p.kernel.Remove(dm.ByUUID(l.UUID), false)
			switch {
			case errors.Is(err, dm.ErrBusy): // the check names it
			case err != nil:
				errs = append(errs, err)
			default:
				r.mend("device %s, which belonged to no volume, was removed", l.Name)
			}
		}
	}
	return errors.Join(errs...)
}
