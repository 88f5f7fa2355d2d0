package dmswap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/failpoint"
)

const (
	removePatience = time.Second // for Pool.patience
	removeStep     = 50 * time.Millisecond
)

// wanted is a volume's device as the metadata says it should be.
type wanted struct {
	volume volumeRecord
	ref    dm.Ref
	table  dm.Table
}

// wantedDevices lists the devices that the committed metadata asks for.
func (p *Pool) wantedDevices() []wanted {
	p.mu.RLock()
	defer p.mu.RUnlock()
	list := make([]wanted, len(p.meta.Volumes))
	for i, v := range p.meta.Volumes {
		list[i] = wanted{v, p.ref(v.UUID, ""), p.place().volumeTable(&v, p.meta.position(v.Position))}
	}
	return list
}

// reconcile makes the kernel's devices agree with the committed metadata,
// whatever a process that died left behind. It is for opening a pool: what an
// operation that is under way has made would be remains to it. The steps are such
// that no two devices that serve I/O ever map one extent:
//
//  1. Snapshots of the dead process are cut off: error targets.
//  2. Volumes whose active table is not the committed one (a swap died between
//     commit and resume, or a snapshot was open) are suspended, all of them,
//     and get the committed table loaded.
//  3. The others drop a preloaded table (a swap died before its commit).
//  4. Everything is resumed. Missing devices are made.
//  5. Devices that belong to no volume are removed, and the reservations of
//     the dead snapshots dropped.
func (p *Pool) reconcile(ctx context.Context) error {
	listed, err := p.kernel.List()
	if err != nil {
		return err
	}
	want := p.wantedDevices()
	have := map[string]bool{}
	var strays []dm.Listed
	for _, l := range listed {
		if !strings.HasPrefix(l.UUID, dmUUIDPrefix(p.uuid)) {
			continue
		}
		have[l.UUID] = true
		if !containsUUID(want, l.UUID) {
			strays = append(strays, l)
		}
	}
	for _, l := range strays {
		if strings.HasSuffix(l.UUID, suffixSnap) {
			if err := p.cutOff(ctx, l); err != nil {
				return err
			}
		}
	}
	failpoint.Hit("reconcile: snapshots cut off")
	var resume, create []wanted
	for _, w := range want {
		if !have[w.ref.UUID] {
			create = append(create, w)
			continue
		}
		again, why, err := p.prepareDevice(ctx, w)
		if err != nil {
			return fmt.Errorf("device of volume %s: %w", w.volume.Name, err)
		}
		if why != "" {
			p.log.Warn("an earlier process left a device as the committed map does not have it", "volume", w.volume.Name, "device", why)
		}
		if again {
			resume = append(resume, w)
		}
	}
	failpoint.Hit("reconcile: tables loaded")
	for _, w := range resume {
		if err := p.kernel.Resume(ctx, w.ref); err != nil {
			return fmt.Errorf("device of volume %s: %w", w.volume.Name, err)
		}
		p.log.Info("device brought to the committed map", "volume", w.volume.Name)
	}
	failpoint.Hit("reconcile: devices resumed")
	for _, w := range create {
		if _, err := p.createDevice(ctx, w.volume, "", w.table); err != nil {
			return fmt.Errorf("device of volume %s: %w", w.volume.Name, err)
		}
	}
	failpoint.Hit("reconcile: missing devices made")
	if err := p.removeStrays(ctx, strays); err != nil {
		return err
	}
	failpoint.Hit("reconcile: strays removed")
	if err := p.learnDevices(want, resume); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err = p.dropReservations()
	return err
}

// prepareDevice brings a device to where only a resume is missing, and tells
// whether it is, and why.
func (p *Pool) prepareDevice(ctx context.Context, w wanted) (resume bool, why string, err error) {
	info, err := p.kernel.Info(w.ref)
	if err != nil {
		return false, "", err
	}
	var table dm.Table
	if info.Active {
		if table, err = p.kernel.Table(w.ref, false); err != nil {
			return false, "", err
		}
	}
	if !table.Equal(w.table) {
		if info.Active && !info.Suspended {
			if err := p.kernel.Suspend(ctx, w.ref, dm.SuspendOptions{}); err != nil {
				return false, "", err
			}
		}
		return true, "has the table " + table.String(), p.kernel.Load(w.ref, w.table, false)
	}
	if info.Suspended {
		why = "is suspended"
	}
	if info.Inactive {
		why = "has a table loaded that was never committed"
		if err := p.kernel.Clear(w.ref); err != nil {
			return false, "", err
		}
	}
	return info.Suspended, why, nil
}

// learnDevices notes the devices' paths, and drops cached pages of those whose
// table has changed.
func (p *Pool) learnDevices(want, changed []wanted) error {
	paths := map[UUID]string{}
	for _, w := range want {
		info, err := p.kernel.Info(w.ref)
		if err != nil {
			return fmt.Errorf("device of volume %s: %w", w.volume.Name, err)
		}
		paths[w.volume.UUID] = info.Path()
	}
	for _, w := range changed {
		if err := p.dropCache(paths[w.volume.UUID]); err != nil {
			p.log.Warn("cached pages not dropped", "volume", w.volume.Name, "err", err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devices = paths
	return nil
}

// dropReservations frees the extents of snapshots that nobody has open or is
// opening, but for those that the caller has claimed, and tells whether there were
// any. The caller holds mu.
func (p *Pool) dropReservations(claimed ...volumeRecord) (dropped bool, err error) {
	left := drop(p.meta.Snapshots, func(s *snapshotRecord) bool {
		mine := slices.ContainsFunc(claimed, func(v volumeRecord) bool { return v.UUID == s.Volume })
		return p.snaps[s.Volume] == nil && (mine || p.busy[s.Volume] == "")
	})
	if len(left) == len(p.meta.Snapshots) {
		return false, nil
	}
	err = p.commit(func(m *metadata) error { m.Snapshots = left; return nil })
	return err == nil, err
}

// removeStrays removes devices of this pool that belong to no volume: the
// remains of snapshots, and of volumes that were never committed. What maps
// onto others goes first.
func (p *Pool) removeStrays(ctx context.Context, strays []dm.Listed) error {
	for _, suffix := range []string{suffixSnap, suffixCOW, suffixReal, ""} {
		for _, l := range strays {
			if strayKind(l.UUID) != suffix {
				continue
			}
			p.log.Warn("removing a device that was left behind", "name", l.Name, "uuid", l.UUID)
			if err := p.discardDevice(ctx, dm.ByUUID(l.UUID)); err != nil {
				return fmt.Errorf("device %s, left behind by an earlier process: %w", l.Name, err)
			}
		}
	}
	return nil
}

func strayKind(uuid string) string {
	for _, suffix := range []string{suffixSnap, suffixCOW, suffixReal} {
		if strings.HasSuffix(uuid, suffix) {
			return suffix
		}
	}
	return ""
}

func containsUUID(list []wanted, uuid string) bool {
	for _, w := range list {
		if w.ref.UUID == uuid {
			return true
		}
	}
	return false
}

// createEmpty makes a device of a volume, without a table yet.
func (p *Pool) createEmpty(v volumeRecord, suffix string) (dm.Info, error) {
	ref := p.ref(v.UUID, suffix)
	info, err := p.kernel.Create(dmName(p.name, v.Name, v.UUID, suffix), ref.UUID)
	if !errors.Is(err, dm.ErrExists) {
		return info, err
	}
	if _, e := p.kernel.Info(ref); !errors.Is(e, dm.ErrNotFound) {
		return info, err // it is there, not only its name
	}
	return p.kernel.Create(dmUniqueName(p.name, v.Name, v.UUID, suffix), ref.UUID)
}

// createDevice makes a device of a volume with a table and resumes it. On
// failure it is gone again.
func (p *Pool) createDevice(ctx context.Context, v volumeRecord, suffix string, table dm.Table) (dm.Info, error) {
	if _, err := p.createEmpty(v, suffix); err != nil {
		return dm.Info{}, err
	}
	ref := p.ref(v.UUID, suffix)
	err := p.kernel.Load(ref, table, false)
	if err == nil {
		err = p.kernel.Resume(ctx, ref)
	}
	var info dm.Info
	if err == nil {
		info, err = p.kernel.Info(ref)
	}
	if err != nil {
		return dm.Info{}, errors.Join(err, p.kernel.Remove(ref, false))
	}
	return info, nil
}

// removeDevice removes a device, and waits a moment for one that is open.
func (p *Pool) removeDevice(ctx context.Context, ref dm.Ref) error {
	deadline := time.Now().Add(p.patience)
	for {
		err := p.kernel.Remove(ref, false)
		switch {
		case err == nil, errors.Is(err, dm.ErrNotFound):
			return nil
		case !errors.Is(err, dm.ErrBusy) || time.Now().After(deadline):
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-time.After(removeStep):
		}
	}
}

// discardDevice gets rid of a device whose extents are to be used for something
// else. One that somebody has open is cut off from the members and goes away
// with its last opener.
func (p *Pool) discardDevice(ctx context.Context, ref dm.Ref) error {
	err := p.removeDevice(ctx, ref)
	if !errors.Is(err, dm.ErrBusy) {
		return err
	}
	info, err := p.kernel.Info(ref)
	if errors.Is(err, dm.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	p.log.Warn("device is open and can't be removed; its I/O is answered with errors from now on", "name", info.Name)
	if err := p.cutOff(ctx, dm.Listed{Name: info.Name, UUID: ref.UUID}); err != nil {
		return err
	}
	return p.kernel.Remove(ref, true)
}

// cutOff replaces a device's table by one that answers everything with errors.
func (p *Pool) cutOff(ctx context.Context, l dm.Listed) error {
	ref := dm.ByUUID(l.UUID)
	info, err := p.kernel.Info(ref)
	if err != nil {
		return fmt.Errorf("device %s: %w", l.Name, err)
	}
	if info.Inactive {
		if err := p.kernel.Clear(ref); err != nil {
			return fmt.Errorf("device %s: %w", l.Name, err)
		}
	}
	if !info.Active {
		return nil
	}
	table, err := p.kernel.Table(ref, false)
	if err == nil {
		err = p.kernel.Load(ref, dm.Table{{Start: 0, Length: table.Size(), Target: dm.ErrorTarget{}}}, info.ReadOnly)
	}
	if err == nil {
		err = p.kernel.Suspend(ctx, ref, dm.SuspendOptions{})
	}
	if err == nil {
		err = p.kernel.Resume(ctx, ref)
	}
	if err != nil {
		return fmt.Errorf("cutting off device %s: %w", l.Name, err)
	}
	return nil
}
