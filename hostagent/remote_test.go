package hostagent

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
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
