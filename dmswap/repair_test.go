package dmswap

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/swapback/swapback/dmswap/dm"
)

// TestRepair damages one thing after the other in an open pool. Each is found by
// the check, mended by the repair, and the old metadata is in a file.
func TestRepair(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(t *testing.T, p *Pool, w *world)
		found  string
		mended string
	}{
		"label": {func(_ *testing.T, _ *Pool, w *world) { w.disks[1].bytes[labelOffset+20] ^= 1 }, "disk disk1: the swapback label is corrupt", "disk disk1: its label"},
		"wiped label": {func(_ *testing.T, _ *Pool, w *world) {
			clear(w.disks[0].bytes[labelOffset : labelOffset+labelSize])
		}, "disk disk0: no swapback label", "disk disk0: its label"},
		"header": {func(_ *testing.T, p *Pool, w *world) {
			m := p.store.members[1]
			w.disks[1].bytes[m.label.Slots[m.newest]+3] ^= 1
		}, "disk disk1: metadata slot", "both metadata slots"},
		"body": {func(_ *testing.T, p *Pool, w *world) {
			m := p.store.members[0]
			w.disks[0].bytes[m.label.Slots[m.newest]+slotBody+7] ^= 1
		}, "disk disk0: metadata slot", "both metadata slots"},
		"both slots": {func(_ *testing.T, _ *Pool, w *world) {
			clear(w.disks[0].bytes[slotsOffset:])
		}, "disk disk0: metadata slot", "both metadata slots"},
		"member left out": {func(t *testing.T, p *Pool, w *world) {
			w.fail = func(what string) error {
				if strings.HasSuffix(what, "disk1") {
					return errors.New("injected")
				}
				return nil
			}
			if err := p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.DeviceNumber = 5 }); err != nil {
				t.Fatal(err)
			}
			w.fail = nil
		}, "member 1 is failed", "member 1 takes part again"},
		"table": {func(t *testing.T, p *Pool, w *world) {
			a, _ := p.Volume("a")
			d := w.kernel.devices[dmUUID(p.uuid, a.UUID, "")]
			d.active = dm.Table{{Start: 0, Length: d.active.Size(), Target: dm.ErrorTarget{}}}
		}, "has the table", "volume a: its device"},
		"suspended": {func(t *testing.T, p *Pool, w *world) {
			a, _ := p.Volume("a")
			w.kernel.devices[dmUUID(p.uuid, a.UUID, "")].info.Suspended = true
		}, "is suspended", "volume a: its device"},
		"second table": {func(t *testing.T, p *Pool, w *world) {
			a, _ := p.Volume("a")
			d := w.kernel.devices[dmUUID(p.uuid, a.UUID, "")]
			d.inactive = d.active
		}, "second table", "volume a: its device"},
		"missing device": {func(t *testing.T, p *Pool, w *world) {
			a, _ := p.Volume("a")
			delete(w.kernel.devices, dmUUID(p.uuid, a.UUID, ""))
		}, "does not exist", "volume a: its device"},
		"stray": {func(t *testing.T, p *Pool, w *world) {
			if _, err := w.kernel.Create("swapback-tank-gone", dmUUID(p.uuid, NewUUID(), suffixCOW)); err != nil {
				t.Fatal(err)
			}
		}, "belongs to no volume", "device swapback-tank-gone"},
		"reservation of a snapshot": {func(t *testing.T, p *Pool, _ *world) {
			a, _ := p.Volume("a")
			p.mu.Lock()
			defer p.mu.Unlock()
			err := p.commit(func(m *metadata) error {
				m.Snapshots = append(m.Snapshots, snapshotRecord{Volume: a.UUID, Segments: []Segment{{1, []SegmentStripe{{0, 31}}}}})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}, "snapshot of volume", "snapshot that is not open"},
		"reservation of nothing": {func(_ *testing.T, p *Pool, _ *world) {
			p.pending["x"] = []Segment{{1, []SegmentStripe{{0, 31}}}}
		}, "not under way", "operation that has ended"},
	} {
		t.Run(name, func(t *testing.T) {
			w := populated(t)
			p := w.open(t)
			before := fingerprint(p)
			tt.damage(t, p, w)
			generation := p.Info().Generation
			if r, err := p.Check(ctx); err != nil || !strings.Contains(strings.Join(r.Problems, "\n"), tt.found) {
				t.Fatalf("check: %+v, %v", r, err)
			}
			r, err := p.Repair(ctx, RepairOptions{KeepDir: t.TempDir()})
			if err != nil || !r.OK() || len(r.Found) == 0 || !strings.Contains(strings.Join(r.Mended, "\n"), tt.mended) {
				t.Fatalf("repair: %+v, %v", r, err)
			}
			text, err := os.ReadFile(r.Kept)
			if err != nil {
				t.Fatal(err)
			}
			if d, err := DecodeDump(text); err != nil || d.Generation() != generation || d.PoolUUID() != p.uuid {
				t.Errorf("kept: %+v, %v", d, err)
			}
			mustCheck(t, p)
			if got := fingerprint(p); name != "member left out" && got != before {
				t.Errorf("something else has changed:\n%s\n%s", before, got)
			}
			mustCheck(t, w.open(t))
		})
	}
}

// TestRepairLeavesTheRestAlone: what is well is not written to, busy volumes and
// devices that somebody has open stay.
func TestRepairLeavesTheRestAlone(t *testing.T) {
	p, w := testPool(t, 32, 32)
	a := mustCreate(t, p, VolumeSpec{Name: "a", Size: 4 << 20})
	w.effects = 0
	dir := t.TempDir()
	if r, err := p.Repair(ctx, RepairOptions{KeepDir: dir}); err != nil || !r.OK() || r.Kept != "" || w.effects != 0 {
		t.Errorf("nothing to mend: %+v, %v, %d effects", r, err, w.effects)
	}
	snap, err := p.OpenSnapshot(ctx, "a", SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stray, err := w.kernel.Create("swapback-tank-held", dmUUID(p.uuid, NewUUID(), ""))
	if err != nil {
		t.Fatal(err)
	}
	w.kernel.devices[stray.UUID].info.OpenCount = 1
	w.disks[0].bytes[labelOffset+20] ^= 1
	r, err := p.Repair(ctx, RepairOptions{KeepDir: dir})
	if err != nil || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "swapback-tank-held") || len(r.Mended) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if w.kernel.devices[dmUUID(p.uuid, a.UUID, suffixSnap)] == nil {
		t.Error("the snapshot is gone")
	}
	delete(w.kernel.devices, stray.UUID)
	if err := snap.Close(ctx); err != nil {
		t.Error(err)
	}
	if r, err := p.Repair(ctx, RepairOptions{KeepDir: "/dev/null/x"}); err != nil || !r.OK() {
		t.Errorf("no file is needed where there is nothing to mend: %+v, %v", r, err)
	}
	w.disks[0].bytes[labelOffset+20] ^= 1
	if _, err := p.Repair(ctx, RepairOptions{KeepDir: "/dev/null/x"}); err == nil || !strings.Contains(err.Error(), "not repaired") {
		t.Errorf("the old metadata could not be kept: %v", err)
	}
	w.disks[0].bytes[labelOffset+20] ^= 1
}

// TestRejoin takes a member back that was missing when the pool was opened.
func TestRejoin(t *testing.T) {
	w := populated(t)
	p, err := w.tryOpenOn(func(i int) bool { return i == 1 })
	if err != nil {
		t.Fatal(err)
	}
	mustCheckDegraded(t, p)
	for range 4 {
		if err := p.SetVolume(ctx, "d", func(a *VolumeAttrs) { a.DeviceNumber++ }); err != nil {
			t.Fatal(err)
		}
	}
	back := openMember{disk: w.disks[1], label: w.labels[1], device: memberDevice(1), path: "disk1b", size: w.labels[1].DiskSize}
	own := w.clone()
	alone, err := own.tryOpenOn(func(i int) bool { return i == 0 })
	if err != nil {
		t.Fatal(err)
	}
	if err := alone.SetVolume(ctx, "d", func(a *VolumeAttrs) { a.ReadOnly = true }); err != nil {
		t.Fatal(err)
	}
	split := back
	split.disk = own.disks[1]
	if err := p.rejoin(ctx, 1, split); !errors.Is(err, ErrSplit) || !p.Info().Degraded() {
		t.Errorf("one that went its own way: %v", err)
	}
	mustCheckDegraded(t, p)
	if err := p.rejoin(ctx, 1, back); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	for _, v := range p.Volumes() {
		if v.Degraded != "" || v.Busy != "" {
			t.Errorf("volume %s: %q, %q", v.Name, v.Degraded, v.Busy)
		}
	}
	if i := p.Info(); i.Members[1].Path != "disk1b" || i.Members[1].State != MemberOK || i.Members[1].Size != back.size {
		t.Errorf("member %+v", i.Members[1])
	}
	if err := swapNow(p, SwapPair{A: "s", B: "d"}); err != nil {
		t.Errorf("swap after the return: %v", err)
	}
	mustCheck(t, w.open(t))
}

func goldenDump() *Dump {
	d := newDump(goldenMetadata(), "/dev/nvme0n1", 1<<20, []int64{4 << 30, 0})
	d.Taken, d.about.Taken = goldenTime, goldenTime
	return d
}

func TestGoldenDump(t *testing.T) {
	text, err := goldenDump().Encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "dump.meta", text)
	d, err := DecodeDump(text)
	if err != nil || !reflect.DeepEqual(d, goldenDump()) {
		t.Errorf("decoded %+v, %v", d, err)
	}
	for at := range text {
		b := bytes.Clone(text)
		b[at] ^= 1
		if _, err := DecodeDump(b); err == nil {
			t.Errorf("byte %d changed: accepted", at)
		}
	}
	for _, n := range []int{0, 63, 64, len(text) - 1} {
		if _, err := DecodeDump(text[:n]); !errors.Is(err, ErrInvalid) || Remedy(err) == "" {
			t.Errorf("%d bytes of it: %v", n, err)
		}
	}
	if _, err := DecodeDump(append(bytes.Clone(text), '\n')); err == nil {
		t.Error("a byte more: accepted")
	}
}

func FuzzDecodeDump(f *testing.F) {
	text, err := goldenDump().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text[dumpHead:])
	f.Fuzz(func(t *testing.T, body []byte) {
		// The checksum would keep the fuzzer out.
		head := fmt.Appendf(nil, "swapback-metadata     v001 length %012d crc32c ", len(body))
		head = fmt.Appendf(head, "%08x", crc(append(bytes.Clone(head), body...)))
		d, err := DecodeDump(append(append(head, " \n"...), body...))
		if err != nil {
			return
		}
		out, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeDump(out)
		if err != nil {
			t.Fatalf("%s\nis not accepted again: %v", out, err)
		}
		if !reflect.DeepEqual(again, d) {
			t.Errorf("%+v became %+v", d, again)
		}
		r := &Restore{dump: d, members: []restoreMember{{label: d.meta.labelOf(0, 1<<20, 1<<30)}}}
		if err := r.meta().check(); err != nil && d.meta.Generation < 1<<63 {
			t.Errorf("can't be restored: %v", err)
		}
	})
}

// restoreOn writes a dump on some members of a world, as Restore does when its
// disks were looked at.
func (w *world) restoreOn(t *testing.T, d *Dump, indexes ...int) {
	t.Helper()
	r := &Restore{dump: d, opt: RestoreOptions{KeepDir: t.TempDir()}}
	for _, i := range indexes {
		m := restoreMember{disk: w.disks[i], path: w.disks[i].name, label: w.labels[i]}
		for j := range 2 {
			m.seen = max(m.seen, readSlot(m.disk, &m.label, j).header.Generation)
		}
		r.members = append(r.members, m)
	}
	heads := make([][]byte, len(indexes))
	for k, i := range indexes {
		heads[k] = bytes.Clone(w.disks[i].bytes)
	}
	if err := r.Apply(ctx); err != nil {
		t.Fatal(err)
	}
	for k := range indexes {
		raw, err := os.ReadFile(r.Kept[k])
		if err != nil || !bytes.HasPrefix(heads[k][labelOffset:], raw) || len(raw) < labelSize {
			t.Errorf("kept %d bytes: %v", len(raw), err)
		}
	}
}

// TestRestoreEndsASplit: one half is made to follow the other, which need not be
// there.
func TestRestoreEndsASplit(t *testing.T) {
	w := populated(t)
	for i, number := range []int{7, 8} {
		p, err := w.tryOpenOn(func(m int) bool { return m == i })
		if err != nil {
			t.Fatal(err)
		}
		if err := p.SetVolume(ctx, "d", func(a *VolumeAttrs) { a.DeviceNumber = number }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.tryOpen(); !errors.Is(err, ErrSplit) {
		t.Fatalf("got %v", err)
	}
	right, err := w.tryOpenOn(func(m int) bool { return m == 1 })
	if err != nil {
		t.Fatal(err)
	}
	d, err := right.Dump()
	if err != nil {
		t.Fatal(err)
	}
	w.restoreOn(t, d, 1)
	p := w.open(t)
	if v, _ := p.Volume("d"); v.DeviceNumber != 8 {
		t.Errorf("number %d", v.DeviceNumber)
	}
	if err := p.SetVolume(ctx, "d", func(a *VolumeAttrs) { a.DeviceNumber = 9 }); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, w.open(t))
}

// TestRestoreOfAnOlderDump: what was committed since is gone only on the disks
// that are named; another one that has it is a split.
func TestRestoreOfAnOlderDump(t *testing.T) {
	w := populated(t)
	p := w.open(t)
	d, err := p.Dump()
	if err != nil {
		t.Fatal(err)
	}
	before := fingerprint(p)
	for range 3 {
		if err := p.SetVolume(ctx, "d", func(a *VolumeAttrs) { a.DeviceNumber++ }); err != nil {
			t.Fatal(err)
		}
	}
	w.restoreOn(t, d, 0)
	if _, err := w.tryOpen(); !errors.Is(err, ErrSplit) {
		t.Errorf("one of two: %v", err)
	}
	w.restoreOn(t, d, 0, 1)
	again := w.open(t)
	mustCheck(t, again)
	if got := fingerprint(again); got != before {
		t.Errorf("got\n%s\nwant\n%s", got, before)
	}
}
