//go:build vm && failpoint

package crash

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

const size = 2 * rig.MiB // of a volume that takes part

// content is what a volume is filled with: different for each seed.
func content(seed uint64) []byte { return rig.RandomBytes(seed, int(size)) }

// TestCrashDaemon kills the daemon at every point of everything that it does,
// while a filesystem on another volume of the pool is written to.
func TestCrashDaemon(t *testing.T) {
	b := newBench(t)
	for _, s := range poolScenarios(t) {
		t.Run(s.name, func(t *testing.T) { s.crashAll(b, t) })
	}
	if t.Failed() {
		return
	}
	b.makePool(t, "a", "b", "c", "d")
	m := b.mountOne(t)
	for _, s := range append(volumeScenarios(t), exportScenarios(t)...) {
		t.Run(s.name, func(t *testing.T) { s.crashAll(b, t) })
		if t.Failed() {
			return
		}
		m.check(t)
	}
	t.Run("release under a holder", func(t *testing.T) { b.releaseHeld(t) })
	t.Run("restart", func(t *testing.T) { b.crashStart(t) })
	m.check(t)
	m.end(t)
	if strings.Contains(flagRun(), "/") {
		return // a part of the scenarios reaches a part of the points
	}
	hosts := of(hostOperations...)
	b.complain(func(point string) bool { return !hosts(point) })
}

func poolScenarios(t *testing.T) []*scenario {
	create := func(b *bench) error {
		_, err := b.Client.CreatePool(t.Context(), api.CreatePoolRequest{Name: "tank", Disks: b.Disks, ExtentSize: rig.MiB, Force: true})
		return err
	}
	remove := func(b *bench) error { return b.Client.DeletePool(t.Context(), "tank", true) }
	return []*scenario{
		{
			name:  "pool create",
			run:   create,
			after: func(world) world { return world{} },
			again: api.CodeExists,
			undo:  func(b *bench) { b.must(remove(b)) },
		},
		{
			name:    "pool delete",
			prepare: func(b *bench) { b.makePool(t, "a") },
			run:     remove,
			after:   func(world) world { return nil },
			again:   api.CodeNotFound,
			undo:    func(*bench) {},
		},
		{
			name:  "pool gone", // what the last one leaves is nothing
			run:   func(*bench) error { return nil },
			after: func(world) world { return nil },
			prepare: func(b *bench) {
				if len(b.pools()) > 0 {
					b.must(remove(b))
				}
			},
		},
	}
}

func volumeScenarios(t *testing.T) []*scenario {
	ctx := t.Context()
	swap := func(busy string, volumes ...string) *scenario {
		var req api.SwapRequest
		s := &scenario{
			name: "swap " + busy + " " + strings.Join(volumes, " "),
			prepare: func(b *bench) {
				req = api.SwapRequest{Busy: busy}
				for i := 0; i < len(volumes); i += 2 {
					x, y := b.Show(volumes[i]), b.Show(volumes[i+1])
					req.Pairs = append(req.Pairs, api.SwapPair{A: x.Name, B: y.Name, ExpectA: x.Position.Generation, ExpectB: y.Position.Generation})
				}
			},
			run: func(b *bench) error { _, err := b.Client.Swap(ctx, req); return err },
			after: func(w world) world {
				for i := 0; i < len(volumes); i += 2 {
					x, y := w[volumes[i]], w[volumes[i+1]]
					w = w.with(volumes[i], func(v *volume) { v.Sum = y.Sum })
					w = w.with(volumes[i+1], func(v *volume) { v.Sum = x.Sum })
				}
				return w
			},
			again: api.CodeGeneration,
			undo:  func(b *bench) { b.Swap(volumes...) },
		}
		return s
	}
	create := func(req api.CreateVolumeRequest) *scenario {
		return &scenario{
			name: "create " + req.Name,
			run:  func(b *bench) error { _, err := b.Client.CreateVolume(ctx, req); return err },
			after: func(w world) world {
				return w.with(req.Name, func(v *volume) {
					*v = volume{Size: req.Size, Attached: !req.Detached, Sum: shortSum(make([]byte, req.Size))}
				})
			},
			again: api.CodeExists,
			undo:  func(b *bench) { b.must(b.Client.DeleteVolume(ctx, req.Name, false)) },
		}
	}
	quarantine := func(b *bench) error {
		_, err := b.Client.Quarantine(ctx, "d", api.QuarantineRequest{Quarantine: api.Quarantine{Reason: "a test"}})
		return err
	}
	release := func(b *bench) error { _, err := b.Client.ReleaseQuarantine(ctx, "d"); return err }
	quarantined := func(v *volume) { v.Quarantine, v.ReadOnly = "a test", true }
	attach := func(b *bench) error { _, err := b.Client.Attach(ctx, "c", api.AttachRequest{}); return err }
	detach := func(b *bench) error { _, err := b.Client.Detach(ctx, "c"); return err }
	return []*scenario{
		swap(api.BusyHold, "a", "b", "c", "d"),
		swap(api.BusyRefuse, "a", "b"),
		create(api.CreateVolumeRequest{Name: "striped", Size: 2 * rig.MiB, Stripes: 2, Zero: true}),
		create(api.CreateVolumeRequest{Name: "detached", Size: rig.MiB, Zero: true, Detached: true}),
		{
			name: "detach", run: detach, again: api.CodeInvalid,
			after: func(w world) world { return w.with("c", func(v *volume) { v.Attached = false }) },
			undo:  func(b *bench) { b.must(attach(b)) },
		},
		{
			name: "attach", run: attach, again: api.CodeExists,
			prepare: func(b *bench) {
				if b.Show("c").Attached {
					b.must(detach(b))
				}
			},
			after: func(w world) world { return w.with("c", func(v *volume) { v.Attached = true }) },
			undo:  func(b *bench) { b.must(detach(b)) },
		},
		{
			name: "grow", again: api.CodeInvalid,
			prepare: func(b *bench) { b.fill(t, "g", 7) },
			run:     func(b *bench) error { _, err := b.Client.GrowVolume(ctx, "g", size+rig.MiB); return err },
			after: func(w world) world {
				return w.with("g", func(v *volume) {
					v.Size, v.Sum = size+rig.MiB, shortSum(append(content(7), make([]byte, rig.MiB)...))
				})
			},
			undo: func(b *bench) { b.must(b.Client.DeleteVolume(ctx, "g", false)) },
		},
		{
			name: "delete", again: api.CodeNotFound,
			prepare: func(b *bench) { b.fill(t, "g", 7) },
			run:     func(b *bench) error { return b.Client.DeleteVolume(ctx, "g", false) },
			after:   func(w world) world { return w.without("g") },
			undo:    func(*bench) {},
		},
		{
			name: "quarantine", run: quarantine, again: "",
			after: func(w world) world { return w.with("d", quarantined) },
			undo:  func(b *bench) { b.must(release(b)) },
		},
		{
			name: "release", run: release, again: api.CodeInvalid,
			prepare: func(b *bench) {
				b.must(quarantine(b))
				b.remake(t, "d")
			},
			after: func(w world) world {
				return w.with("d", func(v *volume) { v.Quarantine, v.ReadOnly = "", false })
			},
			undo:   func(b *bench) { b.must(quarantine(b)) },
			finish: func(b *bench) { b.must(release(b)) },
		},
		snapshotScenario(t),
		recordScenario(t),
	}
}

// recordScenario records the backup of an instant, from which changes are counted
// then.
func recordScenario(t *testing.T) *scenario {
	record := func(b *bench, req api.DescendsRequest) error {
		_, err := b.Client.SetDescendsFrom(t.Context(), "a", req)
		return err
	}
	return &scenario{
		name:    "record",
		prepare: func(b *bench) { b.must(record(b, api.DescendsRequest{Backup: "b-0"})) },
		run: func(b *bench) error {
			snap, end, err := b.Client.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"a"}})
			if err != nil {
				return err
			}
			if err := errors.Join(end(t.Context()), b.waitNoSnapshot("a")); err != nil {
				return err
			}
			if err := record(b, api.DescendsRequest{Backup: "b-1", Cut: snap.Volumes[0].Changes.Cut}); err != nil {
				return err
			}
			if changed := b.Show("a").Changed; changed == nil || changed.Base != "b-1" || changed.Bytes != 0 {
				t.Errorf("after the backup was recorded: %+v", changed)
			}
			return nil
		},
		after: func(w world) world { return w.with("a", func(v *volume) { v.Descends = "b-1" }) },
		undo:  func(*bench) {},
	}
}

// snapshotScenario takes one instant of two volumes, overwrites one, reads the
// instant and ends it.
func snapshotScenario(t *testing.T) *scenario {
	changed := content(1)
	copy(changed, rig.RandomBytes(9, 300<<10))
	return &scenario{
		name: "snapshot",
		prepare: func(b *bench) {
			rig.WriteDevice(t, b.Show("a").Device, 0, content(1))
			rig.WriteDevice(t, b.Show("b").Device, 0, content(2))
		},
		run: func(b *bench) error {
			snap, end, err := b.Client.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"a", "b"}})
			if err != nil {
				return err
			}
			device := snap.Volumes[0].Volume.Device
			rig.WriteDevice(t, device, 0, changed[:300<<10])
			for i, s := range snap.Volumes {
				// On a second run the instant has the change already.
				if got := rig.ReadDevice(t, s.Device, 0, int(size)); i == 1 && !bytes.Equal(got, content(2)) || i == 0 && !bytes.Equal(got[300<<10:], changed[300<<10:]) {
					t.Errorf("the snapshot of %s is not what the volume held", s.Volume.Name)
				}
			}
			if err := end(context.WithoutCancel(t.Context())); err != nil {
				return err
			}
			return b.waitNoSnapshot("a", "b")
		},
		after: func(w world) world { return w.with("a", func(v *volume) { v.Sum = shortSum(changed) }) },
		undo:  func(*bench) {},
	}
}

// remake gives a volume a new device. For one in quarantine it is read-only for
// the driver too, for as long as it lives.
func (b *bench) remake(t *testing.T, name string) {
	t.Helper()
	_, err := b.Client.Detach(t.Context(), name)
	b.must(err)
	_, err = b.Client.Attach(t.Context(), name, api.AttachRequest{})
	b.must(err)
}

// releaseHeld kills the daemon when it has released a volume and not yet made its
// read-only device anew, which somebody holds when it is back: he keeps it, and
// is told.
func (b *bench) releaseHeld(t *testing.T) {
	ctx := t.Context()
	_, err := b.Client.Quarantine(ctx, "d", api.QuarantineRequest{Quarantine: api.Quarantine{Reason: "a test"}})
	b.must(err)
	b.remake(t, "d")
	device := b.Show("d").Device
	b.arm(t, "release: label removed")
	if _, err := b.Client.ReleaseQuarantine(ctx, "d"); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatalf("the daemon was to die: %v", err)
	}
	b.WaitEnd()
	f, err := os.Open(device)
	b.must(err)
	defer f.Close()
	b.Run()
	if _, err := f.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("whoever held the device can't read it any more: %v", err)
	}
	if v := b.Show("d"); !v.ReadOnly || !strings.Contains(v.Error, "read-only") {
		t.Errorf("the device can't be written to; the volume says read-only %v, error %q", v.ReadOnly, v.Error)
	}
	report, err := b.Client.CheckPool(ctx, "tank")
	if err != nil || len(report.Problems) != 1 || !strings.Contains(report.Problems[0], "read-only") {
		t.Errorf("the check of the pool: %q, %v", report.Problems, err)
	}
	f.Close()
	_, err = b.Client.RepairPool(ctx, "tank")
	b.must(err)
	b.Check()
	if v := b.Show("d"); v.ReadOnly || v.Error != "" {
		t.Errorf("the device is made anew; the volume says read-only %v, error %q", v.ReadOnly, v.Error)
	}
	b.fill(t, "d", 4)
}

// waitNoSnapshot waits until the daemon has ended a snapshot, or its own life.
func (b *bench) waitNoSnapshot(volumes ...string) (err error) {
	rig.WaitUntil(b.t, "the snapshot to end", func() bool {
		for _, name := range volumes {
			var v api.Volume
			if v, err = b.Client.Volume(b.t.Context(), name); err != nil {
				return true
			}
			if v.Snapshot {
				return false
			}
		}
		return true
	})
	return err
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) pools() []api.Pool {
	list, err := b.Client.Pools(b.t.Context())
	b.must(err)
	return list
}

// makePool makes the pool with its volumes, if it is not there.
func (b *bench) makePool(t *testing.T, volumes ...string) {
	t.Helper()
	if len(b.pools()) == 0 {
		b.PoolWith(api.CreatePoolRequest{Name: "tank", ExtentSize: rig.MiB})
	}
	for i, name := range volumes {
		b.fill(t, name, uint64(i)+1)
	}
}

// fill makes a volume, if it is not there, and gives it its content.
func (b *bench) fill(t *testing.T, name string, seed uint64) {
	t.Helper()
	v, err := b.Client.Volume(t.Context(), name)
	if api.CodeOf(err) == api.CodeNotFound {
		req := api.CreateVolumeRequest{Name: name, Size: size}
		if name == "b" {
			req.Stripes = 2
		}
		v, err = b.Client.CreateVolume(t.Context(), req)
	}
	b.must(err)
	rig.WriteDevice(t, v.Device, 0, content(seed))
}

// mounted is a filesystem that is used through all crashes.
type mounted struct {
	b        *bench
	dir, dev string
	round    uint64
}

func (b *bench) mountOne(t *testing.T) *mounted {
	v := b.Volume("fs", 16*rig.MiB)
	rig.Tool(t, "mkfs.ext4", "-q", v.Device)
	return &mounted{b: b, dev: v.Device, dir: rig.Mount(t, v.Device, "ext4")}
}

// check reads what was written last time, and writes anew.
func (m *mounted) check(t *testing.T) {
	t.Helper()
	path := filepath.Join(m.dir, "file")
	if m.round > 0 {
		got, err := os.ReadFile(path)
		if want := rig.RandomBytes(m.round, 1<<20); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the file of round %d is not what was written: %v", m.round, err)
		}
	}
	m.round++
	rig.WriteFile(t, path, rig.RandomBytes(m.round, 1<<20))
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
}

func (m *mounted) end(t *testing.T) {
	rig.Unmount(t, m.dir)
	rig.Tool(t, "e2fsck", "-f", "-n", m.dev)
}
