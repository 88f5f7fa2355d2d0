package dmswap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap/dm"
)

// world is the part of the machine that outlives a process: disks and kernel.
// A process that dies (see die) has no effect on it any more.
type world struct {
	mu     sync.Mutex
	disks  []*fakeDisk
	kernel *fakeKernel
	labels []label
	// effects counts what the process did to the world; it dies before the
	// effect number deadline (0: never).
	effects, deadline int
	dead              bool
	// fail, if set, may make an effect fail.
	fail func(effect string) error
}

var errDead = errors.New("the process is dead")

// effect is called before everything that changes the world.
func (w *world) effect(what string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return errDead
	}
	w.effects++
	if w.effects == w.deadline {
		w.dead = true
		return errDead
	}
	if w.fail != nil {
		return w.fail(what)
	}
	return nil
}

// reborn lets a new process act, without limit.
func (w *world) reborn() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead, w.deadline, w.fail = false, 0, nil
}

// clone copies a world, so that many futures can be tried.
func (w *world) clone() *world {
	c := &world{labels: w.labels}
	for _, d := range w.disks {
		c.disks = append(c.disks, &fakeDisk{w: c, name: d.name, bytes: slices.Clone(d.bytes), pending: slices.Clone(d.pending)})
	}
	c.kernel = &fakeKernel{w: c, next: w.kernel.next, devices: map[string]*fakeDevice{}}
	for k, d := range w.kernel.devices {
		copied := *d
		c.kernel.devices[k] = &copied
	}
	return c
}

const fakeMetaSize = 3 << 20 // what of a disk is kept: everything before the extents

// fakeDisk keeps the head of a disk. What is written is volatile until Sync.
type fakeDisk struct {
	w       *world
	mu      sync.Mutex
	name    string
	bytes   []byte      // as a reader sees it
	pending []fakeWrite // since the last Sync, with what was there before
	zeroed  [][2]int64
	// bad makes reads of these bytes fail, if not nil.
	bad func(off, length int64) bool
}

type fakeWrite struct {
	at  int64
	old []byte
}

func (d *fakeDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := misaligned(p, off); err != nil {
		return 0, err
	}
	if d.bad != nil && d.bad(off, int64(len(p))) {
		return 0, fmt.Errorf("read %s: %w", d.name, unix.EIO)
	}
	return copy(p, d.bytes[off:]), nil
}

func (d *fakeDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := misaligned(p, off); err != nil {
		return 0, err
	}
	if err := d.w.effect("write " + d.name); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending = append(d.pending, fakeWrite{off, slices.Clone(d.bytes[off : off+int64(len(p))])})
	return copy(d.bytes[off:], p), nil
}

// WriteDurable is two effects, so that a power cut can come between: the header
// arrives in part then. What was written before and not synced stays volatile.
func (d *fakeDisk) WriteDurable(p []byte, off int64) error {
	if err := misaligned(p, off); err != nil {
		return err
	}
	if err := d.w.effect("fua write " + d.name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending = append(d.pending, fakeWrite{off, slices.Clone(d.bytes[off : off+int64(len(p))])})
	copy(d.bytes[off:], p)
	if err := d.w.effect("fua end " + d.name); err != nil {
		return err
	}
	d.pending = slices.DeleteFunc(d.pending, func(w fakeWrite) bool {
		return w.at >= off && w.at+int64(len(w.old)) <= off+int64(len(p))
	})
	return nil
}

func misaligned(p []byte, off int64) error {
	if off%blockSize != 0 || len(p)%blockSize != 0 {
		return fmt.Errorf("%d bytes at %d: %w", len(p), off, unix.EINVAL)
	}
	return nil
}

func (d *fakeDisk) Sync() error {
	if err := d.w.effect("sync " + d.name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending = nil
	return nil
}

func (d *fakeDisk) Zero(_ context.Context, off, length int64) error {
	if err := d.w.effect("zero " + d.name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.zeroed = append(d.zeroed, [2]int64{off, length})
	return nil
}

func (d *fakeDisk) Close() error { return nil }

// cutPower takes back a random part of what was not synced, in sectors.
func (d *fakeDisk) cutPower(rng *rand.Rand) {
	for _, w := range slices.Backward(d.pending) {
		for at := 0; at < len(w.old); at += 512 {
			if rng.Intn(2) == 0 {
				copy(d.bytes[w.at+int64(at):], w.old[at:at+512])
			}
		}
	}
	d.pending = nil
}

// fakeKernel is a model of the device-mapper: which tables are where.
type fakeKernel struct {
	w       *world
	mu      sync.Mutex
	next    uint32
	devices map[string]*fakeDevice // by UUID
}

type fakeDevice struct {
	info             dm.Info
	active, inactive dm.Table
}

func (k *fakeKernel) get(ref dm.Ref) (*fakeDevice, error) {
	if d := k.devices[ref.UUID]; d != nil {
		return d, nil
	}
	return nil, &dm.Error{Op: "look at", Object: ref.String(), Errno: unix.ENXIO}
}

// change does something to a device, unless the process is dead.
func (k *fakeKernel) change(op string, ref dm.Ref, do func(d *fakeDevice) error) error {
	if err := k.w.effect(op + " " + ref.String()); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.get(ref)
	if err != nil {
		return err
	}
	return do(d)
}

func (k *fakeKernel) Create(name, uuid string) (dm.Info, error) {
	if err := k.w.effect("create " + uuid); err != nil {
		return dm.Info{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.devices {
		if d.info.UUID == uuid || d.info.Name == name {
			return dm.Info{}, &dm.Error{Op: "create", Object: name, Errno: unix.EBUSY}
		}
	}
	k.next++
	d := &fakeDevice{info: dm.Info{Name: name, UUID: uuid, Device: dm.Device{Major: 253, Minor: k.next}}}
	k.devices[uuid] = d
	return d.info, nil
}

func (k *fakeKernel) Load(ref dm.Ref, table dm.Table, _ bool) error {
	if err := table.Validate(); err != nil {
		return err
	}
	return k.change("load", ref, func(d *fakeDevice) error {
		for _, e := range table {
			if s, ok := e.Target.(dm.Striped); ok && e.Length%(s.Chunk*uint64(len(s.Stripes))) != 0 {
				return &dm.Error{Op: "load table of", Object: ref.String(), Errno: unix.EINVAL}
			}
		}
		d.inactive = table
		return nil
	})
}

func (k *fakeKernel) Clear(ref dm.Ref) error {
	return k.change("clear", ref, func(d *fakeDevice) error { d.inactive = nil; return nil })
}

func (k *fakeKernel) Suspend(_ context.Context, ref dm.Ref, _ dm.SuspendOptions) error {
	return k.change("suspend", ref, func(d *fakeDevice) error { d.info.Suspended = true; return nil })
}

func (k *fakeKernel) Resume(_ context.Context, ref dm.Ref) error {
	return k.change("resume", ref, func(d *fakeDevice) error {
		if d.inactive != nil {
			d.active, d.inactive = d.inactive, nil
		}
		d.info.Suspended = false
		k.snapshotsAreFed()
		return k.noOverlap()
	})
}

// snapshotsAreFed is what must hold whenever I/O can flow: while a snapshot can
// be read, its volume copies old data into it.
func (k *fakeKernel) snapshotsAreFed() {
	for uuid, snap := range k.devices {
		volume := k.devices[strings.TrimSuffix(uuid, suffixSnap)]
		if strayKind(uuid) != suffixSnap || snap.info.Suspended || len(snap.active) == 0 || volume == nil || volume.info.Suspended {
			continue
		}
		if _, ok := snap.active[0].Target.(dm.Snapshot); !ok {
			continue
		}
		if _, ok := volume.active[0].Target.(dm.SnapshotOrigin); !ok {
			panic(fmt.Sprintf("%s can be read while its volume has the table %s", uuid, volume.active))
		}
	}
}

// noOverlap is what must hold whenever I/O can flow: no two volumes' devices
// map one sector.
func (k *fakeKernel) noOverlap() error {
	type stretch struct {
		start, end uint64
		owner      string
	}
	byDevice := map[dm.Device][]stretch{}
	for uuid, d := range k.devices {
		if d.info.Suspended || strayKind(uuid) != "" {
			continue
		}
		for _, e := range d.active {
			switch t := e.Target.(type) {
			case dm.Linear:
				byDevice[t.Device] = append(byDevice[t.Device], stretch{t.Start, t.Start + e.Length, uuid})
			case dm.Striped:
				for _, l := range t.Stripes {
					byDevice[l.Device] = append(byDevice[l.Device], stretch{l.Start, l.Start + e.Length/uint64(len(t.Stripes)), uuid})
				}
			}
		}
	}
	for dev, list := range byDevice {
		slices.SortFunc(list, func(a, b stretch) int { return int(a.start) - int(b.start) })
		for i := 1; i < len(list); i++ {
			if list[i].start < list[i-1].end {
				panic(fmt.Sprintf("sector %d of %s is mapped by %s and %s at once", list[i].start, dev, list[i-1].owner, list[i].owner))
			}
		}
	}
	return nil
}

func (k *fakeKernel) Remove(ref dm.Ref, deferred bool) error {
	return k.change("remove", ref, func(d *fakeDevice) error {
		if d.info.OpenCount > 0 {
			d.info.DeferredRemove = d.info.DeferredRemove || deferred
			if !deferred {
				return &dm.Error{Op: "remove", Object: ref.String(), Errno: unix.EBUSY}
			}
			return nil
		}
		delete(k.devices, ref.UUID)
		return nil
	})
}

func (k *fakeKernel) Info(ref dm.Ref) (dm.Info, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.get(ref)
	if err != nil {
		return dm.Info{}, err
	}
	info := d.info
	info.Active, info.Inactive = d.active != nil, d.inactive != nil
	return info, nil
}

func (k *fakeKernel) Table(ref dm.Ref, inactive bool) (dm.Table, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.get(ref)
	if err != nil {
		return nil, err
	}
	if inactive {
		return d.inactive, nil
	}
	return d.active, nil
}

func (k *fakeKernel) Status(ref dm.Ref) ([]dm.Status, error) {
	table, err := k.Table(ref, false)
	if err != nil || len(table) == 0 {
		return nil, err
	}
	return []dm.Status{{Length: table.Size(), Kind: table[0].Target.Kind(), Text: "16/8192 0"}}, nil
}

func (k *fakeKernel) List() ([]dm.Listed, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []dm.Listed
	for uuid, d := range k.devices {
		list = append(list, dm.Listed{Name: d.info.Name, UUID: uuid, Device: d.info.Device})
	}
	slices.SortFunc(list, func(a, b dm.Listed) int { return int(a.Device.Minor) - int(b.Device.Minor) })
	return list, nil
}

func (k *fakeKernel) Close() error { return nil }

// reboot forgets all devices.
func (k *fakeKernel) reboot() { k.devices = map[string]*fakeDevice{} }

// newWorld makes a machine with a pool on blank disks of so many extents of
// 1 MiB each.
func newWorld(t *testing.T, extents ...int64) *world {
	t.Helper()
	w := &world{}
	w.kernel = &fakeKernel{w: w, devices: map[string]*fakeDevice{}}
	opt := CreateOptions{Name: "tank", Disks: make([]string, len(extents)), ExtentSize: 1 << 20}
	if err := opt.normalise(); err != nil {
		t.Fatal(err)
	}
	var sizes []int64
	for _, n := range extents {
		sizes = append(sizes, fakeMetaSize+n<<20)
	}
	s, meta := newStore(opt, sizes)
	for i, m := range s.members {
		d := &fakeDisk{w: w, name: fmt.Sprintf("disk%d", i), bytes: alignedBuffer(fakeMetaSize)}
		w.disks = append(w.disks, d)
		m.disk, m.path = d, d.name
		w.labels = append(w.labels, m.label)
	}
	if err := errors.Join(s.commit(meta), s.writeLabels(false)); err != nil {
		t.Fatal(err)
	}
	return w
}

// open opens the world's pool as a new process would.
func (w *world) open(t *testing.T) *Pool {
	t.Helper()
	p, err := w.tryOpen()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (w *world) tryOpen() (*Pool, error) { return w.tryOpenOn(nil) }

// tryOpenOn opens the pool without the members for which away is true.
func (w *world) tryOpenOn(away func(member int) bool) (*Pool, error) {
	members := make([]openMember, len(w.disks))
	for i, d := range w.disks {
		if away != nil && away(i) {
			continue
		}
		l, err := readLabel(d)
		if err != nil {
			ok := false
			if l, ok = recognise(d, w.labels[i].DiskSize, w.labels[i].SlotSize); !ok {
				return nil, err
			}
		}
		members[i] = openMember{d, l, err, memberDevice(i), d.name, l.DiskSize}
	}
	p, err := openPool(context.Background(), w.kernel, members, slog.New(slog.DiscardHandler), func(string) error { return nil })
	if err == nil {
		p.patience = 0
	}
	return p, err
}

func memberDevice(i int) dm.Device { return dm.Device{Major: 259, Minor: uint32(i)} }

// mustCheck fails the test when the pool is not consistent.
func mustCheck(t *testing.T, p *Pool) {
	t.Helper()
	report, err := p.Check(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range report.Problems {
		t.Errorf("check: %s", problem)
	}
}

// mustCheckDegraded is mustCheck for a pool of which a member takes no part: that
// is the only problem.
func mustCheckDegraded(t *testing.T, p *Pool) {
	t.Helper()
	report, err := p.Check(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range report.Problems {
		if !strings.Contains(problem, " is failed: ") && !strings.Contains(problem, " is missing: ") {
			t.Errorf("check: %s", problem)
		}
	}
}

// testPool is a world with a pool that is checked when the test ends.
func testPool(t *testing.T, extents ...int64) (*Pool, *world) {
	t.Helper()
	w := newWorld(t, extents...)
	p := w.open(t)
	t.Cleanup(func() {
		if p.disks != nil {
			if p.Info().Degraded() {
				mustCheckDegraded(t, p)
			} else {
				mustCheck(t, p)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return p, w
}

func mustCreate(t *testing.T, p *Pool, spec VolumeSpec) VolumeInfo {
	t.Helper()
	v, err := p.CreateVolume(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
