package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/swapback/swapback/api"
)

// fakeService answers the API from memory. It stands in for the daemon in tests
// of parsing, formatting and exit codes only; what commands really do is tested
// with the real daemon in the virtual machine.
type fakeService struct {
	api.Service // methods that no test needs panic

	info    api.Info
	pools   []api.Pool
	volumes []api.Volume
	holders []api.Holder
	report  api.CheckReport
	fail    error // what a change answers, when set

	snapshot string            // what a snapshot of any volume shows
	changes  api.Changes       // what has changed in it
	devices  map[string]string // device that a volume gets when it is attached

	created []any // requests that came, in order
	deleted []string
	swaps   []api.SwapRequest
}

var instant = time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC)

func newFake() *fakeService {
	linear := func(start, n int64) api.Position {
		return api.Position{
			ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", start), Generation: uint64(start + 3), Stripes: 1,
			Segments: []api.Segment{{Extents: n, Stripes: []api.SegmentStripe{{Member: 0, Start: start}}}},
		}
	}
	f := &fakeService{
		info: api.Info{Version: "v0.1.0", PID: 812, Kernel: "7.3.4", Pools: []string{"tank"}},
		pools: []api.Pool{{
			Name: "tank", UUID: "11111111-0000-4000-8000-000000000001", Created: instant, ExtentSize: 4 << 20,
			Extents: 2046, FreeExtents: 1534, Size: 2046 << 22, Free: 1534 << 22, Generation: 12, Volumes: 3,
			Members: []api.Member{
				{Index: 0, UUID: "22222222-0000-4000-8000-000000000001", Path: "/dev/nvme0n1", State: api.MemberOK, Extents: 1023, FreeExtents: 511, DataOffset: 4 << 20},
				{Index: 1, UUID: "22222222-0000-4000-8000-000000000002", Path: "/dev/nvme1n1", State: api.MemberOK, Extents: 1023, FreeExtents: 1023, DataOffset: 4 << 20},
			},
		}},
		volumes: []api.Volume{
			{
				Name: "db", Pool: "tank", UUID: "33333333-0000-4000-8000-000000000001", Size: 1 << 30,
				State: api.StateServing, Attached: true, Device: "/dev/ublkb0", Link: "/dev/swapback/tank/db",
				Backend: "/dev/dm-0", Queues: 2, Position: linear(4, 256),
				IO: &api.IOStats{Reads: 100, ReadBytes: 1 << 20, Writes: 50, WriteBytes: 3 << 19, Flushes: 7, Held: 3},
			},
			{
				Name: "db-spare", Pool: "tank", UUID: "33333333-0000-4000-8000-000000000002", Size: 1 << 30,
				State: api.StateServing, Attached: true, ReadOnly: true, Device: "/dev/ublkb1", DeviceNumber: 1,
				Position: linear(260, 256),
			},
			{
				Name: "log", Pool: "tank", UUID: "33333333-0000-4000-8000-000000000003", Size: 3 << 29,
				State: api.StateDetached, DeviceNumber: -1,
				Position: api.Position{
					ID: "44444444-0000-4000-8000-000000000001", Generation: 1, Stripes: 2, StripeSize: 64 << 10,
					DescendsFrom: "20260301T120000-1a2b3c4d",
					Segments: []api.Segment{{Extents: 192, Stripes: []api.SegmentStripe{
						{Member: 0, Start: 600}, {Member: 1, Start: 0}}}},
				},
			},
		},
	}
	f.volumes[1].Position.Quarantine = &api.Quarantine{
		Reason: "sum is wrong", Time: instant, Volume: "db", Job: "nightly", Step: "import", ExitCode: 3,
		Backup: "20260301T120000-1a2b3c4d",
	}
	return f
}

func (f *fakeService) Info(context.Context) (api.Info, error)    { return f.info, nil }
func (f *fakeService) Pools(context.Context) ([]api.Pool, error) { return f.pools, nil }

func (f *fakeService) Pool(_ context.Context, name string) (api.Pool, error) {
	for _, p := range f.pools {
		if p.Name == name || p.UUID == name {
			return p, nil
		}
	}
	return api.Pool{}, &api.Error{Code: api.CodeNotFound, Message: "no pool " + name}
}

func (f *fakeService) CreatePool(_ context.Context, req api.CreatePoolRequest) (api.Pool, error) {
	f.created = append(f.created, req)
	if f.fail != nil {
		return api.Pool{}, f.fail
	}
	return f.pools[0], nil
}

func (f *fakeService) DeletePool(_ context.Context, name string, force bool) error {
	f.deleted = append(f.deleted, fmt.Sprintf("pool %s force=%v", name, force))
	return f.fail
}

func (f *fakeService) CheckPool(ctx context.Context, name string) (api.CheckReport, error) {
	if _, err := f.Pool(ctx, name); err != nil {
		return api.CheckReport{}, err
	}
	return f.report, nil
}

func (f *fakeService) RepairPool(ctx context.Context, name string) (api.CheckReport, error) {
	r, err := f.CheckPool(ctx, name)
	r.Found, r.Problems, r.OK = r.Problems, []string{}, true
	r.Mended, r.Saved = []string{"disk /dev/nvme0n1: its label was written anew"}, "/var/lib/swapback/metadata/tank-generation12.meta"
	return r, err
}

func (f *fakeService) RejoinPool(ctx context.Context, name string) (api.Pool, error) {
	return f.Pool(ctx, name)
}

func (f *fakeService) PoolMetadata(ctx context.Context, name string) (api.PoolMetadata, error) {
	p, err := f.Pool(ctx, name)
	return api.PoolMetadata{Pool: p.Name, Generation: p.Generation, Dump: "swapback-metadata …\n"}, err
}

func (f *fakeService) Volumes(ctx context.Context, pool string) ([]api.Volume, error) {
	if pool == "" {
		return f.volumes, nil
	}
	p, err := f.Pool(ctx, pool)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(f.volumes), func(v api.Volume) bool { return v.Pool != p.Name }), nil
}

func (f *fakeService) Volume(_ context.Context, name string) (api.Volume, error) {
	for _, v := range f.volumes {
		if v.Name == name || v.UUID == name || v.Pool+"/"+v.Name == name {
			return v, nil
		}
	}
	return api.Volume{}, &api.Error{Code: api.CodeNotFound, Message: "no volume " + name, Remedy: "swapback volume list shows all"}
}

// change records a request and answers with the volume it is about.
func (f *fakeService) change(ctx context.Context, name string, req any) (api.Volume, error) {
	f.created = append(f.created, req)
	if f.fail != nil {
		return api.Volume{}, f.fail
	}
	return f.Volume(ctx, name)
}

func (f *fakeService) CreateVolume(ctx context.Context, req api.CreateVolumeRequest) (api.Volume, error) {
	return f.change(ctx, "db", req)
}

func (f *fakeService) DeleteVolume(_ context.Context, name string, force bool) error {
	f.deleted = append(f.deleted, fmt.Sprintf("volume %s force=%v", name, force))
	return f.fail
}

func (f *fakeService) GrowVolume(ctx context.Context, name string, size int64) (api.Volume, error) {
	return f.change(ctx, name, api.GrowRequest{Size: size})
}

func (f *fakeService) Attach(ctx context.Context, name string, req api.AttachRequest) (api.Volume, error) {
	if v, err := f.Volume(ctx, name); err == nil {
		f.setDevice(name, f.devices[v.Name])
	}
	return f.change(ctx, name, req)
}

// setDevice gives a volume of devices its device, or takes it.
func (f *fakeService) setDevice(name, device string) {
	for i, v := range f.volumes {
		if _, has := f.devices[v.Name]; has && (v.Name == name || v.UUID == name) {
			f.volumes[i].Device = device
		}
	}
}

func (f *fakeService) SetDescendsFrom(ctx context.Context, name string, req api.DescendsRequest) (api.Volume, error) {
	return f.change(ctx, name, req)
}

func (f *fakeService) OpenSnapshot(ctx context.Context, req api.SnapshotRequest) (api.Snapshot, func(context.Context) error, error) {
	f.created = append(f.created, req)
	snap := api.Snapshot{Time: instant.Add(time.Duration(len(f.created)) * time.Hour)}
	for _, name := range req.Volumes {
		v, err := f.Volume(ctx, name)
		if err != nil {
			return snap, nil, err
		}
		snap.Volumes = append(snap.Volumes, api.SnapshotVolume{Volume: v, Device: f.snapshot, Changes: f.changes})
	}
	return snap, func(context.Context) error { return nil }, f.fail
}

func (f *fakeService) Detach(ctx context.Context, name string) (api.Volume, error) {
	f.setDevice(name, "")
	return f.change(ctx, name, "detach "+name)
}

func (f *fakeService) Quarantine(ctx context.Context, name string, req api.QuarantineRequest) (api.Volume, error) {
	return f.change(ctx, name, req)
}

func (f *fakeService) ReleaseQuarantine(ctx context.Context, name string) (api.Volume, error) {
	return f.change(ctx, name, "release "+name)
}

func (f *fakeService) Holders(ctx context.Context, name string) ([]api.Holder, error) {
	if _, err := f.Volume(ctx, name); err != nil {
		return nil, err
	}
	return f.holders, nil
}

func (f *fakeService) Swap(ctx context.Context, req api.SwapRequest) (api.SwapResult, error) {
	f.swaps = append(f.swaps, req)
	if f.fail != nil {
		return api.SwapResult{}, f.fail
	}
	r := api.SwapResult{
		Busy: req.Busy, Pause: 0.0123, Held: 31, Coherent: true, Started: instant,
		Phases: api.SwapPhases{Preflight: 0.003, Preload: 0.001, Drain: 0.002, Suspend: 0.004, Commit: 0.0051, Resume: 0.0002, Verify: 1.5},
	}
	for i, p := range req.Pairs {
		for _, name := range []string{p.A, p.B} {
			if _, err := f.Volume(ctx, name); err != nil {
				return api.SwapResult{}, err
			}
		}
		r.Pairs = append(r.Pairs, api.SwappedPair{A: p.A, B: p.B, GenerationA: uint64(8 + i), GenerationB: uint64(5 + i)})
	}
	return r, nil
}
