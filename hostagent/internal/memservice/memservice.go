// Package memservice is an [api.Service] in memory, for tests of what the host
// agent decides. It keeps the contract of the Service: a method that answers an
// error has changed nothing. Positions are files, and a volume's "device" is a
// link to the file of its position, so backups and restores are real.
//
// What the kernel does is not here; the integration tests have the real daemon.
package memservice

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/swapback/swapback/api"
)

// Pool is the name of the only pool.
const Pool = "tank"

// ExtentSize of the pool in bytes.
const ExtentSize = 1 << 20

// Service is the fake. Hooks and Held may be set before it is used.
type Service struct {
	api.Service // what is not implemented panics

	dir string

	mu        sync.Mutex
	volumes   []*api.Volume
	next      int
	free      int64 // extents
	snapshots int
	bases     map[string]*image // by position
	cuts      []image           // of snapshots, by number

	// Before is called before a method does its work, After when it has done
	// it; an error is the method's answer in place of its own.
	Before, After func(method, volume string) error
	// Held are the holders of a volume, by name.
	Held map[string][]api.Holder
	// Swaps are the requests that came.
	Swaps []api.SwapRequest
	// Incoherent makes swaps answer so.
	Incoherent bool
	// SnapshotLingers is how many looks at a volume show a snapshot after its
	// end, as over a socket.
	SnapshotLingers int
	lingering       int
	// Unreadable names volumes whose snapshots can't be read; those in Full show
	// that they ran full, until they are ended.
	Unreadable, Full []string
}

// New makes a pool with free extents; positions lie in dir.
func New(dir string, extents int64) *Service {
	return &Service{dir: dir, free: extents, Held: map[string][]api.Holder{}, bases: map[string]*image{}}
}

func (s *Service) before(method, volume string) error {
	if s.Before == nil {
		return nil
	}
	return s.Before(method, volume)
}

func (s *Service) after(method, volume string, err error) error {
	if err == nil && s.After != nil {
		return s.After(method, volume)
	}
	return err
}

func (s *Service) find(ref string) (*api.Volume, error) {
	for _, v := range s.volumes {
		if ref == v.Name || ref == v.UUID || ref == v.Pool+"/"+v.Name {
			return v, nil
		}
	}
	return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no volume %q", ref)}
}

func (s *Service) file(position string) string { return filepath.Join(s.dir, "position-"+position) }

// link makes the volume's device show its position.
func (s *Service) link(v *api.Volume) error {
	if v.Device == "" {
		return nil
	}
	if err := os.Remove(v.Device); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Symlink(s.file(v.Position.ID), v.Device)
}

// Info implements [api.Service].
func (s *Service) Info(context.Context) (api.Info, error) {
	if err := s.before("Info", ""); err != nil {
		return api.Info{}, err
	}
	return api.Info{Version: "mem", Pools: []string{Pool}}, nil
}

// Pool implements [api.Service].
func (s *Service) Pool(_ context.Context, name string) (api.Pool, error) {
	if err := s.before("Pool", name); err != nil {
		return api.Pool{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return api.Pool{Name: Pool, ExtentSize: ExtentSize, FreeExtents: s.free, Free: s.free * ExtentSize}, nil
}

// Volumes implements [api.Service].
func (s *Service) Volumes(_ context.Context, _ string) ([]api.Volume, error) {
	if err := s.before("Volumes", ""); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []api.Volume
	for _, v := range s.volumes {
		list = append(list, *v)
	}
	return list, nil
}

// Volume implements [api.Service].
func (s *Service) Volume(_ context.Context, ref string) (api.Volume, error) {
	if err := s.before("Volume", ref); err != nil {
		return api.Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return api.Volume{}, err
	}
	out := *v
	if s.lingering > 0 {
		s.lingering--
		out.Snapshot = true
	}
	return out, nil
}

// CreateVolume implements [api.Service].
func (s *Service) CreateVolume(_ context.Context, req api.CreateVolumeRequest) (api.Volume, error) {
	if err := s.before("CreateVolume", req.Name); err != nil {
		return api.Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	extents := (req.Size + ExtentSize - 1) / ExtentSize
	if _, err := s.find(req.Name); err == nil {
		return api.Volume{}, &api.Error{Code: api.CodeExists, Message: "volume " + req.Name + " exists"}
	}
	if extents > s.free {
		return api.Volume{}, &api.Error{Code: api.CodeNoSpace, Message: "pool is full"}
	}
	s.next++
	v := &api.Volume{
		Name: req.Name, Pool: Pool, UUID: fmt.Sprintf("00000000-0000-4000-8000-%012d", s.next), Size: req.Size,
		State: api.StateDetached, DeviceNumber: s.next,
		Position: api.Position{ID: fmt.Sprintf("10000000-0000-4000-8000-%012d", s.next), Generation: 1, Stripes: max(req.Stripes, 1)},
	}
	f, err := os.Create(s.file(v.Position.ID))
	if err != nil {
		return api.Volume{}, err
	}
	defer f.Close()
	if err := f.Truncate(req.Size); err != nil {
		return api.Volume{}, err
	}
	if !req.Detached {
		s.attach(v)
		if err := s.link(v); err != nil {
			return api.Volume{}, err
		}
	}
	s.free -= extents
	s.volumes = append(s.volumes, v)
	return *v, s.after("CreateVolume", req.Name, nil)
}

func (s *Service) attach(v *api.Volume) {
	v.Device = filepath.Join(s.dir, fmt.Sprintf("ublkb%d", v.DeviceNumber))
	v.State, v.Attached = api.StateServing, true
}

// DeleteVolume implements [api.Service].
func (s *Service) DeleteVolume(_ context.Context, ref string, force bool) error {
	if err := s.before("DeleteVolume", ref); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return err
	}
	if v.Position.Quarantine != nil && !force {
		return &api.Error{Code: api.CodeQuarantined, Message: "volume " + v.Name + " is in quarantine"}
	}
	s.free += (v.Size + ExtentSize - 1) / ExtentSize
	s.volumes = slices.DeleteFunc(s.volumes, func(o *api.Volume) bool { return o == v })
	return os.Remove(s.file(v.Position.ID))
}

// Attach implements [api.Service].
func (s *Service) Attach(_ context.Context, ref string, _ api.AttachRequest) (api.Volume, error) {
	if err := s.before("Attach", ref); err != nil {
		return api.Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return api.Volume{}, err
	}
	if v.Device != "" {
		return api.Volume{}, &api.Error{Code: api.CodeExists, Message: "volume " + v.Name + " is attached"}
	}
	s.attach(v)
	return *v, s.link(v)
}

// Detach implements [api.Service].
func (s *Service) Detach(_ context.Context, ref string) (api.Volume, error) {
	if err := s.before("Detach", ref); err != nil {
		return api.Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return api.Volume{}, err
	}
	if err := os.Remove(v.Device); err != nil {
		return api.Volume{}, err
	}
	v.Device, v.State, v.Attached = "", api.StateDetached, false
	return *v, nil
}

// Quarantine implements [api.Service].
func (s *Service) Quarantine(_ context.Context, ref string, req api.QuarantineRequest) (api.Volume, error) {
	if err := s.before("Quarantine", ref); err != nil {
		return api.Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return api.Volume{}, err
	}
	if err := expect(v, req.Generation); err != nil {
		return api.Volume{}, err
	}
	q := req.Quarantine
	v.Position.Quarantine = &q
	v.ReadOnly = true
	return *v, s.after("Quarantine", ref, nil)
}

// SetDescendsFrom implements [api.Service].
func (s *Service) SetDescendsFrom(_ context.Context, ref string, req api.DescendsRequest) (api.Volume, error) {
	if err := s.before("SetDescendsFrom", ref); err != nil {
		return api.Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return api.Volume{}, err
	}
	if err := expect(v, req.Generation); err != nil {
		return api.Volume{}, err
	}
	v.Position.DescendsFrom = req.Backup
	s.confirm(v, req.Cut, req.Backup)
	return *v, nil
}

func expect(v *api.Volume, generation uint64) error {
	if generation != 0 && generation != v.Position.Generation {
		return &api.Error{Code: api.CodeGeneration, Message: fmt.Sprintf("volume %s has generation %d, not %d", v.Name, v.Position.Generation, generation)}
	}
	return nil
}

// Holders implements [api.Service].
func (s *Service) Holders(_ context.Context, ref string) ([]api.Holder, error) {
	if err := s.before("Holders", ref); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	return s.Held[v.Name], nil
}

// Swap implements [api.Service].
func (s *Service) Swap(_ context.Context, req api.SwapRequest) (api.SwapResult, error) {
	s.mu.Lock()
	s.Swaps = append(s.Swaps, req)
	s.mu.Unlock()
	if err := s.before("Swap", ""); err != nil {
		return api.SwapResult{}, err
	}
	res, err := s.swap(req)
	return res, s.after("Swap", "", err)
}

func (s *Service) swap(req api.SwapRequest) (api.SwapResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	res := api.SwapResult{Busy: req.Busy, Coherent: !s.Incoherent, Pause: 0.01, Started: time.Now()}
	var list []*api.Volume
	for _, p := range req.Pairs {
		for _, side := range []struct {
			ref    string
			expect uint64
		}{{p.A, p.ExpectA}, {p.B, p.ExpectB}} {
			v, err := s.find(side.ref)
			if err != nil {
				return res, err
			}
			if err := expect(v, side.expect); err != nil {
				return res, err
			}
			if v.Position.Quarantine != nil {
				return res, &api.Error{Code: api.CodeQuarantined, Message: "volume " + v.Name + " is in quarantine"}
			}
			if held := s.Held[v.Name]; len(held) > 0 && !req.AllowHolders {
				return res, &api.Error{Code: api.CodeInUse, Message: "swap refused", Holders: held}
			}
			list = append(list, v)
		}
	}
	for i := 0; i < len(list); i += 2 {
		a, b := list[i], list[i+1]
		a.Position, b.Position = b.Position, a.Position
		if q := req.Pairs[i/2].Quarantine; q != nil {
			label := *q
			b.Position.Quarantine, b.ReadOnly = &label, true
		}
		a.Position.Generation++
		b.Position.Generation++
		if err := s.link(a); err != nil {
			return res, err
		}
		if err := s.link(b); err != nil {
			return res, err
		}
		res.Pairs = append(res.Pairs, api.SwappedPair{A: a.Pool + "/" + a.Name, B: b.Pool + "/" + b.Name, GenerationA: a.Position.Generation, GenerationB: b.Position.Generation})
	}
	return res, nil
}

// OpenSnapshot implements [api.Service].
func (s *Service) OpenSnapshot(_ context.Context, req api.SnapshotRequest) (api.Snapshot, func(context.Context) error, error) {
	if err := s.before("OpenSnapshot", ""); err != nil {
		return api.Snapshot{}, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := api.Snapshot{Time: time.Now().UTC()}
	var paths []string
	var opened []*api.Volume
	for _, ref := range req.Volumes {
		v, err := s.find(ref)
		if err != nil {
			return snap, nil, err
		}
		path := filepath.Join(s.dir, "snapshot-"+v.Name)
		if err := copyFile(s.file(v.Position.ID), path); err != nil {
			return snap, nil, err
		}
		paths = append(paths, path)
		device := path
		if slices.Contains(s.Unreadable, v.Name) {
			device += ".unreadable"
		}
		opened = append(opened, v)
		changes, err := s.cut(v)
		if err != nil {
			return snap, nil, err
		}
		snap.Volumes = append(snap.Volumes, api.SnapshotVolume{Volume: *v, Device: device, COWSize: cmp.Or(req.COWSize, v.Size), Changes: changes})
		v.SnapshotFull = slices.Contains(s.Full, v.Name)
	}
	s.snapshots++
	end := func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.snapshots--
		s.lingering = s.SnapshotLingers
		for _, v := range opened {
			v.SnapshotFull = false
		}
		for _, p := range paths {
			if err := os.Remove(p); err != nil {
				return err
			}
		}
		return nil
	}
	return snap, end, nil
}

// Snapshots is how many snapshots are open.
func (s *Service) Snapshots() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshots
}

// Change changes a volume as only the daemon could, such as its state.
func (s *Service) Change(name string, f func(*api.Volume)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(name)
	if err != nil {
		panic(err)
	}
	f(v)
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	return err
}
