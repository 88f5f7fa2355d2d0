package afar

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent/internal/memservice"
	"github.com/swapback/swapback/hostagent/nvmehost"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const host = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"

// storage is a daemon of another machine: its volumes are exported, and none of its devices
// is here but those in sysfs.
type storage struct {
	api.Service
	t      *testing.T
	mem    *memservice.Service
	here   nvmehost.Host
	caller *api.Caller
	hides  bool // the daemon knows of no snapshots for hosts, or the host sees none
	old    bool
}

func newStorage(t *testing.T) *storage {
	t.Helper()
	mem := memservice.New(t.TempDir(), 64)
	return &storage{
		Service: mem, t: t, mem: mem, here: nvmehost.Host{Sys: t.TempDir(), Dev: t.TempDir(), Etc: t.TempDir()},
		caller: &api.Caller{Name: "host1", Hosts: []string{host}},
	}
}

func (s *storage) volume(name string) api.Volume {
	s.t.Helper()
	v, err := s.mem.CreateVolume(s.t.Context(), api.CreateVolumeRequest{Name: name, Size: 1 << 20})
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// appear makes a disk with an identity.
func (s *storage) appear(name, uuid string) {
	s.t.Helper()
	dir := filepath.Join(s.here.Sys, "class/block", name)
	err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "uuid"), []byte(uuid+"\n"), 0o600), os.WriteFile(filepath.Join(s.here.Dev, name), nil, 0o600))
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *storage) Info(context.Context) (api.Info, error) { return api.Info{Caller: s.caller}, nil }

func (s *storage) Volume(ctx context.Context, ref string) (api.Volume, error) {
	v, err := s.mem.Volume(ctx, ref)
	if v.Device = s.here.Device(v.UUID); v.Name != "alone" {
		v.NQN = "nqn.2014-08.org.nvmexpress:uuid:" + v.UUID
	}
	return v, err
}

func (s *storage) Export(ctx context.Context, ref string) (api.Export, error) {
	v, err := s.Volume(ctx, ref)
	return api.Export{Volume: "tank/" + v.Name, UUID: v.UUID, NQN: v.NQN, Hosts: []string{host}, Connect: []string{"nvme connect -n " + v.NQN}, Addresses: []string{"192.0.2.1:4420"}}, err
}

func (s *storage) Exports(context.Context) ([]api.Export, error) { return nil, nil }

func (s *storage) OpenSnapshot(ctx context.Context, req api.SnapshotRequest) (api.Snapshot, func(context.Context) error, error) {
	snap, end, err := s.mem.OpenSnapshot(ctx, req)
	for i := range snap.Volumes {
		v := &snap.Volumes[i]
		v.Device = ""
		if !req.ToHosts || s.old {
			continue
		}
		v.NamespaceUUID = "44444444" + v.Volume.UUID[8:]
		if !s.hides {
			s.appear("nvme0n2", v.NamespaceUUID)
		}
	}
	return snap, end, err
}

// refused fails unless an error says what, and what to do.
func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Remedy == "" {
		t.Errorf("got %v, want an error with a remedy", err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in %v", w, err)
		}
	}
}

// TestSnapshotsAreReadHere: a snapshot is where this machine sees it; where it can't be, that
// is said, and none is left open.
func TestSnapshotsAreReadHere(t *testing.T) {
	w := newStorage(t)
	v := w.volume("db")
	w.volume("alone")
	svc := New(w, w.here)
	open := func(name string) (api.Snapshot, error) {
		snap, end, err := svc.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{name}})
		if err == nil {
			err = end(t.Context())
		}
		if n := w.mem.Snapshots(); n != 0 {
			t.Errorf("%d snapshots are left open", n)
		}
		return snap, err
	}
	_, err := open("alone")
	refused(t, err, "tank/alone", "export create")
	_, err = open("db")
	refused(t, err, "tank/db", "not connected", "nvme connect -n")
	w.appear("nvme0n1", v.UUID)
	snap, err := open("db")
	if err != nil || snap.Volumes[0].Device != filepath.Join(w.here.Dev, "nvme0n2") {
		t.Errorf("%+v, %v", snap, err)
	}
	w.old = true
	_, err = open("db")
	refused(t, err, "tank/db", "does not show")
	w.old = false
	if err := os.RemoveAll(filepath.Join(w.here.Sys, "class/block/nvme0n2")); err != nil {
		t.Fatal(err)
	}
	w.hides = true
	ctx, cancel := context.WithCancelCause(t.Context())
	go cancel(errors.New("given up"))
	_, _, err = svc.OpenSnapshot(ctx, api.SnapshotRequest{Volumes: []string{"db"}})
	refused(t, err, "tank/db", "has not appeared", "given up", "nvme list-subsys")
	if n := w.mem.Snapshots(); n != 0 {
		t.Errorf("%d snapshots are left open", n)
	}
}

// TestAttachConnects: or says why it can't, and what does.
func TestAttachConnects(t *testing.T) {
	w := newStorage(t)
	v := w.volume("db")
	w.volume("alone")
	svc := New(w, w.here)
	_, err := svc.Attach(t.Context(), "alone", api.AttachRequest{})
	refused(t, err, "tank/alone", "export create")
	_, err = svc.Attach(t.Context(), "db", api.AttachRequest{})
	refused(t, err, "tank/db", "gen-hostnqn", "nvme connect -n "+"nqn.2014-08.org.nvmexpress:uuid:"+v.UUID)
	if err := errors.Join(os.Mkdir(filepath.Join(w.here.Etc, "nvme"), 0o755), os.WriteFile(filepath.Join(w.here.Etc, "nvme/hostnqn"), []byte(host), 0o600)); err != nil {
		t.Fatal(err)
	}
	_, err = svc.Attach(t.Context(), "db", api.AttachRequest{})
	refused(t, err, "tank/db", "modprobe nvme-tcp")
	w.appear("nvme0n1", v.UUID)
	if _, err := svc.Attach(t.Context(), "db", api.AttachRequest{}); api.CodeOf(err) != api.CodeExists {
		t.Errorf("connected already: %v", err)
	}
	// What somebody else has connected stays.
	if v, err := svc.Detach(t.Context(), "db"); err != nil || v.Device == "" {
		t.Errorf("%+v, %v", v, err)
	}
	if err := svc.Close(); err != nil {
		t.Error(err)
	}
}

// TestSwapOfWhatIsElsewhere: this machine says nothing of a volume that it does not have.
func TestSwapOfWhatIsElsewhere(t *testing.T) {
	w := newStorage(t)
	w.volume("a")
	w.volume("b")
	if _, err := New(w, w.here).Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "b"}}}); err != nil {
		t.Fatal(err)
	}
	if len(w.mem.Swaps) != 1 || len(w.mem.Swaps[0].Released) != 0 {
		t.Errorf("%+v", w.mem.Swaps)
	}
}

// TestDaemonOfThisMachine: nothing is changed.
func TestDaemonOfThisMachine(t *testing.T) {
	w := newStorage(t)
	w.caller = nil
	w.volume("db")
	svc := New(w.mem, w.here)
	if remote, err := Remote(t.Context(), svc); remote || err != nil {
		t.Errorf("%v, %v", remote, err)
	}
	if remote, err := Remote(t.Context(), New(newStorage(t), w.here)); !remote || err != nil {
		t.Errorf("another machine's: %v, %v", remote, err)
	}
	snap, end, err := svc.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"db"}})
	if err != nil || snap.Volumes[0].Device == "" || snap.Volumes[0].NamespaceUUID != "" {
		t.Fatalf("%+v, %v", snap, err)
	}
	if err := end(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := svc.Detach(t.Context(), "db"); err != nil {
		t.Error(err)
	}
	if v, err := svc.Attach(t.Context(), "db", api.AttachRequest{}); err != nil || v.Device == "" {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestOthers: this machine is left out where the caller speaks for it.
func TestOthers(t *testing.T) {
	const other = "nqn.2014-08.org.example:other"
	all := []api.Holder{
		{Kind: "mount", Detail: "mounted on /srv"}, {Kind: "nvme", Host: host, Detail: "host"}, {Kind: "nvme", Host: other, Detail: "other"},
	}
	for _, tt := range []struct {
		names, speaksFor []string
		want             string
	}{
		{[]string{host}, []string{host}, "mounted on /srv|other"},
		{[]string{host}, []string{host, other}, "mounted on /srv|other"}, // it is no name of this machine
		{[]string{host, other}, []string{host, other}, "mounted on /srv"},
		{nil, []string{host}, "mounted on /srv|host|other"},
		{[]string{host}, nil, "mounted on /srv|host; that is this machine, but client host1 does not speak for it (on the storage machine, in the file of rights: host host1 " + host + ")|other"},
	} {
		var got []string
		for _, h := range others(all, tt.names, &api.Caller{Name: "host1", Hosts: tt.speaksFor}) {
			got = append(got, h.Detail)
		}
		if text := strings.Join(got, "|"); text != tt.want {
			t.Errorf("names %q, speaks for %q: %s", tt.names, tt.speaksFor, text)
		}
	}
}
