package hostagent

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent/afar"
	"github.com/swapback/swapback/hostagent/internal/memservice"
	"github.com/swapback/swapback/hostagent/nvmehost"
)

// elsewhere is a service of another machine, whose devices are not here.
type elsewhere struct{ api.Service }

func (e elsewhere) Volume(ctx context.Context, ref string) (api.Volume, error) {
	v, err := e.Service.Volume(ctx, ref)
	v.Device = ""
	return v, err
}

func (e elsewhere) Attach(ctx context.Context, ref string, req api.AttachRequest) (api.Volume, error) {
	v, err := e.Service.Attach(ctx, ref, req)
	v.Device = ""
	return v, err
}

func (e elsewhere) OpenSnapshot(ctx context.Context, req api.SnapshotRequest) (api.Snapshot, func(context.Context) error, error) {
	snap, end, err := e.Service.OpenSnapshot(ctx, req)
	for i := range snap.Volumes {
		snap.Volumes[i].Device = ""
	}
	return snap, end, err
}

// TestDevicesOfAnotherMachine: what can't be read or written from here is refused
// by name, nothing is changed, and no snapshot stays open.
func TestDevicesOfAnotherMachine(t *testing.T) {
	w := newWorld(t, 16, "a", "a-spare")
	_, err := Backup(t.Context(), BackupOptions{Service: elsewhere{w.svc}, Repo: w.repo, Volumes: []string{"a"}})
	refused := func(what string, err error) {
		t.Helper()
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeUnsupported || e.Remedy == "" || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("snapshot of volume", err)
	if list, err := w.repo.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%d backups, %v", len(list), err)
	}
	if _, err := Backup(t.Context(), BackupOptions{Service: w.svc, Repo: w.repo, Volumes: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	before := w.show("a-spare")
	_, err = Restore(t.Context(), RestoreOptions{Service: elsewhere{w.svc}, Repo: w.repo, Backup: "latest", Volume: "a-spare"})
	refused("no block device of it", err)
	if after := w.show("a-spare"); after.Position.Generation != before.Position.Generation || after.Position.DescendsFrom != before.Position.DescendsFrom {
		t.Errorf("the target has changed: %+v", after)
	}
	w.holds("a-spare", uint64(len("a-spare")))
}

// storage is the daemon of another machine, of which this one has all that is exported; what
// is created like another volume is connected at once.
type storage struct {
	*memservice.Service
	exported map[string]bool // by name
	created  []api.CreateVolumeRequest
}

func (s *storage) Info(context.Context) (api.Info, error) {
	return api.Info{Caller: &api.Caller{Name: "host1"}}, nil
}

func (s *storage) seen(v api.Volume) api.Volume {
	if s.exported[v.Name] {
		v.NQN = "nqn.2014-08.org.nvmexpress:uuid:" + v.UUID
	}
	return v
}

func (s *storage) Volume(ctx context.Context, ref string) (api.Volume, error) {
	v, err := s.Service.Volume(ctx, ref)
	return s.seen(v), err
}

func (s *storage) Volumes(ctx context.Context, pool string) ([]api.Volume, error) {
	list, err := s.Service.Volumes(ctx, pool)
	for i := range list {
		list[i] = s.seen(list[i])
	}
	return list, err
}

func (s *storage) Holders(context.Context, string) ([]api.Holder, error) { return nil, nil }

func (s *storage) CreateVolume(ctx context.Context, req api.CreateVolumeRequest) (api.Volume, error) {
	s.created = append(s.created, req)
	s.exported[req.Name] = req.Like != ""
	req.Detached = false
	v, err := s.Service.CreateVolume(ctx, req)
	return s.seen(v), err
}

// TestSparesOfAnotherMachine: what is not exported is no spare for this machine; one that it
// creates is for the hosts of the volume.
func TestSparesOfAnotherMachine(t *testing.T) {
	w := newWorld(t, 100, "db", "db-spare")
	w.backup("db")
	w.write("db", 66)
	s := &storage{Service: w.svc, exported: map[string]bool{"db": true}}
	o := RecoverOptions{Service: afar.New(s, nvmehost.Host{Sys: t.TempDir()}), Repo: w.repo, Volumes: []string{"db"}}
	res, err := Recover(t.Context(), o)
	if err != nil || len(res.Volumes) != 1 || res.Volumes[0].Spare != "tank/db-spare-2" {
		t.Fatalf("%+v, %v", res, err)
	}
	w.holds("db", 2)
	w.holds("db-spare-2", 66)
	w.holds("db-spare", uint64(len("db-spare")))
	if len(s.created) != 1 || s.created[0].Like != w.show("db").UUID || !s.created[0].Detached {
		t.Errorf("created %+v", s.created)
	}
	// The one that is there does when it is exported.
	w.write("db", 67)
	s.exported["db-spare"] = true
	if res, err := Recover(t.Context(), o); err != nil || res.Volumes[0].Spare != "tank/db-spare" || len(s.created) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	w.holds("db", 2)
	w.holds("db-spare", 67)
}
