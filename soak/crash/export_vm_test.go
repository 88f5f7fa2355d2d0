//go:build vm && failpoint

package crash

import (
	"context"
	"slices"
	"testing"

	"github.com/swapback/swapback/api"
)

const (
	oneHost = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
	twoHost = "nqn.2014-08.org.nvmexpress:uuid:66666666-2222-3333-4444-555555555555"
)

// exportScenarios are those of a volume that other hosts may use.
func exportScenarios(t *testing.T) []*scenario {
	ctx := t.Context()
	create := func(b *bench) error {
		_, err := b.Client.CreateExport(ctx, "c", api.ExportRequest{Hosts: []string{oneHost}})
		return err
	}
	change := func(b *bench, req api.ChangeExportRequest) error {
		_, err := b.Client.ChangeExport(ctx, "c", req)
		return err
	}
	remove := func(b *bench) error { return b.Client.DeleteExport(ctx, "c", true) }
	exported := func(b *bench) {
		if b.Show("c").NQN == "" {
			b.must(create(b))
		}
	}
	hosts := func(names string) func(world) world {
		return func(w world) world { return w.with("c", func(v *volume) { v.Hosts = names }) }
	}
	return []*scenario{
		{
			name: "export", run: create, again: api.CodeExists,
			after: hosts(oneHost),
			undo:  func(b *bench) { b.must(remove(b)) },
		},
		{
			name: "export change", prepare: exported,
			run:    func(b *bench) error { return change(b, api.ChangeExportRequest{Allow: []string{twoHost}}) },
			after:  hosts(oneHost + " " + twoHost),
			undo:   func(b *bench) { b.must(change(b, api.ChangeExportRequest{Deny: []string{twoHost}})) },
			finish: func(b *bench) { b.must(remove(b)) },
		},
		{
			name: "export delete", prepare: exported, run: remove, again: api.CodeNotFound,
			after: hosts(""),
			undo:  exported,
			finish: func(b *bench) {
				if b.Show("c").NQN != "" {
					b.must(remove(b))
				}
			},
		},
		{
			// A snapshot that hosts see is gone with the daemon, for them as well.
			name: "snapshot for hosts", prepare: exported,
			run: func(b *bench) error {
				snap, end, err := b.Client.OpenSnapshot(ctx, api.SnapshotRequest{Volumes: []string{"c"}, ToHosts: true})
				if err != nil {
					return err
				}
				if snap.Volumes[0].NamespaceUUID == "" {
					t.Error("hosts are not shown the snapshot")
				}
				if err := end(context.WithoutCancel(ctx)); err != nil {
					return err
				}
				return b.waitNoSnapshot("c")
			},
			after:  func(w world) world { return w },
			finish: func(b *bench) { b.must(remove(b)) },
		},
		{
			name: "create for hosts", prepare: exported,
			run: func(b *bench) error {
				_, err := b.Client.CreateVolume(ctx, api.CreateVolumeRequest{Name: "like", Size: size, Like: "c", Detached: true, Zero: true})
				return err
			},
			again: api.CodeExists,
			after: func(w world) world {
				return w.with("like", func(v *volume) { *v = volume{Size: size, Hosts: oneHost, Sum: shortSum(make([]byte, size))} })
			},
			undo:   func(b *bench) { b.must(b.Client.DeleteVolume(ctx, "like", false)) },
			finish: func(b *bench) { b.must(remove(b)) },
		},
	}
}

// exportsSeen are the hosts of exported volumes, by POOL/NAME. Each has to be served.
func exportsSeen(t *testing.T, list []api.Export) map[string][]string {
	t.Helper()
	seen := map[string][]string{}
	for _, e := range list {
		seen[e.Volume] = slices.Clone(e.Hosts)
		if !e.Serving {
			t.Errorf("volume %s is not served to other hosts: %s", e.Volume, e.Error)
		}
	}
	return seen
}
