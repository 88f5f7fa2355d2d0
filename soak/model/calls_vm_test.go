//go:build vm

package model

import (
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

func (w *walk) create() {
	req := api.CreateVolumeRequest{Name: fmt.Sprintf("v%d", w.rng.IntN(12)), Size: w.size(), Detached: w.chance(5)}
	if w.chance(3) {
		req.Stripes = one(w, -1, 0, 1, 2, 2, 2, 1025)
		req.StripeSize = one[int64](w, 0, 0, 4096, 65536, 5000, 1<<40)
	}
	if w.chance(10) {
		req.Name = one(w, strange...)
	}
	if w.chance(10) {
		req.Pool = one(w, "tank", "tank", "nowhere", "../tank")
	}
	req.Zero = w.chance(20) && req.Size < 16*rig.MiB
	got, err := w.d.Client.CreateVolume(w.t.Context(), req)
	if w.called(err, w.p.Create(req), "create", "%.80q of %d, %d stripes of %d, detached %v, in %q", req.Name, req.Size, req.Stripes, req.StripeSize, req.Detached, req.Pool) {
		w.p.Created(req, got)
	}
}

func (w *walk) delete() {
	ref, force := w.any(), w.chance(4)
	err := w.d.Client.DeleteVolume(w.t.Context(), ref, force)
	if w.called(err, w.p.Delete(ref, force, false), "delete", "%.80q, force %v", ref, force) {
		w.p.Deleted(ref)
	}
}

func (w *walk) grow() {
	v := w.some(func(*Volume) bool { return true })
	ref, size := w.ref(v), w.size()
	if v != nil && w.chance(2) {
		size = v.Size + one[int64](w, 1, block, 4*rig.MiB, 5*rig.MiB)
		if v.Size > 64*rig.MiB {
			return // small volumes make swaps
		}
	}
	if size > w.p.ExtentSize*w.p.Free()/2 && size < 1<<40 {
		return // what fills the pool is for create
	}
	_, err := w.d.Client.GrowVolume(w.t.Context(), ref, size)
	if w.called(err, w.p.Grow(ref, size), "grow", "%.80q to %d", ref, size) {
		w.p.Grown(ref, size)
	}
}

func (w *walk) attach() {
	ref := w.any()
	if v := w.some(func(v *Volume) bool { return !v.Attached }); v != nil && !w.chance(4) {
		ref = w.ref(v)
	}
	req := api.AttachRequest{ReadOnly: w.chance(4)}
	wanted := "any"
	if w.chance(4) {
		n := one(w, 0, 1, 5, 40, -1, 1<<20)
		req.Device, wanted = &n, fmt.Sprint(n)
	}
	got, err := w.d.Client.Attach(w.t.Context(), ref, req)
	if w.called(err, w.p.Attach(ref, req), "attach", "%.80q, read-only %v, device %s", ref, req.ReadOnly, wanted) {
		if req.Device != nil && got.DeviceNumber != *req.Device {
			w.fail("device is %d, not %d", got.DeviceNumber, *req.Device)
		}
		w.p.Attached(ref, req, got.DeviceNumber)
	}
}

func (w *walk) detach() {
	ref := w.any()
	_, err := w.d.Client.Detach(w.t.Context(), ref)
	if w.called(err, w.p.Detach(ref, false), "detach", "%.80q", ref) {
		w.p.Detached(ref)
	}
}

// generation is that of a volume, now and then another, and often any.
func (w *walk) generation(ref string) uint64 {
	v := w.p.Find(ref)
	if v == nil || w.chance(2) {
		return 0
	}
	if w.chance(6) {
		return one[uint64](w, v.Position.Generation+1, v.Position.Generation-1, 1<<64-1)
	}
	return v.Position.Generation
}

// pairs are such that the swap is right most of the time: volumes of one size,
// neither failed nor in a snapshot.
func (w *walk) pairs(n int) (req api.SwapRequest) {
	taken := map[*Volume]bool{}
	free := func(v *Volume) bool { return !taken[v] && !v.Position.Quarantined && v.Snapshot == 0 }
	for range n {
		var a *Volume
		partner := func(v *Volume) bool { return v != a && free(v) && v.Size == a.Size }
		a = w.some(func(v *Volume) bool {
			a = v
			return free(v) && slices.ContainsFunc(w.p.Volumes, partner)
		})
		var b *Volume
		if a != nil && !w.chance(10) {
			b = w.some(partner)
		} else {
			b = w.some(func(*Volume) bool { return true })
		}
		taken[a], taken[b] = true, true
		p := api.SwapPair{A: w.ref(a), B: w.ref(b)}
		p.ExpectA, p.ExpectB = w.generation(p.A), w.generation(p.B)
		req.Pairs = append(req.Pairs, p)
	}
	return req
}

func (w *walk) swap() {
	req := w.pairs(one(w, 1, 1, 1, 1, 2, 3))
	req.Busy = one(w, "", api.BusyHold, api.BusyRefuse)
	w.swapNow("swap", req)
}

// swapNow swaps, and looks at what the answer says.
func (w *walk) swapNow(kind string, req api.SwapRequest, held ...*Volume) {
	got, err := w.d.Client.Swap(w.t.Context(), req)
	if !w.called(err, w.p.Swap(req, held...), kind, "%.300q, holders allowed %v", fmt.Sprint(req.Pairs), req.AllowHolders) {
		return
	}
	w.p.Swapped(req)
	if len(got.Pairs) != len(req.Pairs) || len(held) == 0 && (!got.Coherent || got.Warning != "") {
		w.fail("the swap says %+v", got)
	}
	for i, p := range req.Pairs {
		if a, b := w.p.Find(p.A).Position, w.p.Find(p.B).Position; got.Pairs[i].GenerationA != a.Generation || got.Pairs[i].GenerationB != b.Generation {
			w.fail("the swap says generations %+v, want %d and %d", got.Pairs[i], a.Generation, b.Generation)
		}
	}
}

// swapHeld opens a device and then asks for what its holder may not be done.
func (w *walk) swapHeld() {
	v := w.some(func(v *Volume) bool { return v.Attached })
	if v == nil {
		return
	}
	f, err := os.Open(fmt.Sprintf("/dev/ublkb%d", v.Device))
	if err != nil {
		w.fail("open the device of %s: %v", v.Name, err)
	}
	defer f.Close()
	switch w.rng.IntN(4) {
	case 0:
		w.called(w.d.Client.DeleteVolume(w.t.Context(), v.Name, true), w.p.Delete(v.Name, true, true), "delete held", "%s", v.Name)
	case 1:
		_, err := w.d.Client.Detach(w.t.Context(), v.Name)
		w.called(err, w.p.Detach(v.Name, true), "detach held", "%s", v.Name)
	default:
		req := w.pairs(1)
		req.Pairs[0].A, req.Pairs[0].ExpectA = v.Name, 0
		if other := w.some(func(o *Volume) bool { return o != v && o.Size == v.Size }); other != nil {
			req.Pairs[0].B, req.Pairs[0].ExpectB = other.Name, 0
		}
		req.AllowHolders = w.chance(2)
		w.swapNow("swap held", req, v)
	}
}

// swapRace has several ask for the same swap at the same time, with the
// generations that they all have seen, while others only look: one gets it.
func (w *walk) swapRace() {
	req := w.pairs(1)
	a, b := w.p.Find(req.Pairs[0].A), w.p.Find(req.Pairs[0].B)
	if a == nil || b == nil || len(w.p.Swap(req)) > 0 {
		return
	}
	req.Pairs[0].ExpectA, req.Pairs[0].ExpectB = a.Position.Generation, b.Position.Generation
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() { _, errs[i] = w.d.Client.Swap(w.t.Context(), req) })
	}
	looks := make([]error, 3)
	wg.Go(func() { _, looks[0] = w.d.Client.Volumes(w.t.Context(), "") })
	wg.Go(func() { _, looks[1] = w.d.Client.Holders(w.t.Context(), a.Name) })
	wg.Go(func() {
		r, err := w.d.Client.CheckPool(w.t.Context(), w.p.Name)
		if looks[2] = err; err == nil && !r.OK {
			looks[2] = fmt.Errorf("pool check: %q", r.Problems)
		}
	})
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch api.CodeOf(err) {
		case api.CodeBusy, api.CodeGeneration:
		default:
			if err != nil {
				w.fail("race of %v: %v", req.Pairs, err)
			}
			won++
		}
	}
	for _, err := range looks {
		if err != nil {
			w.fail("beside a race of %v: %v", req.Pairs, err)
		}
	}
	if won != 1 {
		w.fail("%d of %d won the race of %v: %v", won, len(errs), req.Pairs, errs)
	}
	w.p.Swapped(req)
	w.called(nil, nil, "swap race", "%v", req.Pairs)
}

func (w *walk) quarantine() {
	ref := w.any()
	req := api.QuarantineRequest{Quarantine: api.Quarantine{Reason: "by chance", Job: "j", ExitCode: 3}, Generation: w.generation(ref)}
	_, err := w.d.Client.Quarantine(w.t.Context(), ref, req)
	if w.called(err, w.p.Quarantine(ref, req.Generation), "quarantine", "%.80q of generation %d", ref, req.Generation) {
		w.p.Find(ref).Position.Quarantined = true
	}
}

func (w *walk) release() {
	ref := w.any()
	if v := w.some(func(v *Volume) bool { return v.Position.Quarantined }); v != nil && !w.chance(4) {
		ref = w.ref(v)
	}
	_, err := w.d.Client.ReleaseQuarantine(w.t.Context(), ref)
	if w.called(err, w.p.Release(ref), "release", "%.80q", ref) {
		w.p.Find(ref).Position.Quarantined = false
	}
}

func (w *walk) descends() {
	ref := w.any()
	req := api.DescendsRequest{Backup: one(w, "20261125T000000Z-0badcafe", "x", "../..", "é\"\\"), Generation: w.generation(ref)}
	_, err := w.d.Client.SetDescendsFrom(w.t.Context(), ref, req)
	if w.called(err, w.p.Descends(ref, req), "descends", "%.80q from %q, generation %d", ref, req.Backup, req.Generation) {
		w.p.Find(ref).Position.Descends = req.Backup
	}
}

func (w *walk) look() {
	ref := w.any()
	want := w.p.Show(ref)
	if w.chance(2) {
		list, err := w.d.Client.Holders(w.t.Context(), ref)
		if w.called(err, want, "holders", "%.80q", ref) && len(list) > 0 {
			w.fail("holders of %s are %v", ref, list)
		}
		return
	}
	got, err := w.d.Client.Volume(w.t.Context(), ref)
	if w.called(err, want, "show", "%.80q", ref) {
		if d := w.p.Find(ref).differences(got, w.p.ExtentSize); len(d) > 0 {
			w.fail("volume show: %q", d)
		}
	}
}

// garbage names volumes that are not there, in everything that takes a name.
func (w *walk) garbage() {
	name, ctx := one(w, strange...), w.t.Context()
	if w.p.Find(name) != nil {
		return // create has given it to one
	}
	no := Codes{api.CodeNotFound, api.CodeInvalid}
	calls := []func() error{
		func() error { return w.d.Client.DeleteVolume(ctx, name, true) },
		func() error { _, err := w.d.Client.Attach(ctx, name, api.AttachRequest{}); return err },
		func() error { _, err := w.d.Client.Detach(ctx, name); return err },
		func() error { _, err := w.d.Client.GrowVolume(ctx, name, 1<<40); return err },
		func() error { _, err := w.d.Client.Quarantine(ctx, name, api.QuarantineRequest{}); return err },
		func() error { _, err := w.d.Client.ReleaseQuarantine(ctx, name); return err },
		func() error { _, err := w.d.Client.Holders(ctx, name); return err },
		func() error { _, err := w.d.Client.Pool(ctx, name); return err },
		func() error { _, err := w.d.Client.CheckPool(ctx, name); return err },
		func() error { return w.d.Client.DeletePool(ctx, name, true) },
	}
	i := w.rng.IntN(len(calls))
	w.called(calls[i](), no, "garbage", "%.80q in call %d", name, i)
}

// pools asks for pools that can't be made and for the end of one that is in use.
func (w *walk) pools() {
	ctx := w.t.Context()
	if len(w.p.Volumes) > 0 && w.chance(3) {
		w.called(w.d.Client.DeletePool(ctx, w.p.Name, false), Codes{api.CodeExists}, "delete pool", "%s", w.p.Name)
		return
	}
	req := api.CreatePoolRequest{
		Name: one(w, "other", w.p.Name, "..", "a/b", "\x00"), ExtentSize: one[int64](w, 0, -1, 5000, 1<<40, 1<<20), Force: true,
		Disks: []string{one(w, "/dev/null", "/etc/passwd", "relative", "/nowhere", "/dev/../etc", "", w.d.Disks[0])},
	}
	_, err := w.d.Client.CreatePool(ctx, req)
	no := Codes{api.CodeInvalid, api.CodeExists, api.CodeInUse, api.CodeNotFound}
	w.called(err, no, "create pool", "%q of %q, extents of %d", req.Name, req.Disks, req.ExtentSize)
}
