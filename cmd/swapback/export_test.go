package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/swapback/swapback/api"
)

const (
	hostOne = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
	hostTwo = "nqn.2026-01.org.example:two"
)

// exportOf is what the fake shows of an exported volume.
func exportOf(name string) api.Export {
	const uuid = "33333333-0000-4000-8000-000000000001"
	nqn := "nqn.2014-08.org.nvmexpress:uuid:" + uuid
	return api.Export{
		Volume: "tank/" + name, NQN: nqn, UUID: uuid, Serial: "33333333000040008000", Size: 1 << 30, Hosts: []string{hostOne, hostTwo},
		Serving: true, Listen: []string{"192.0.2.1:4420"}, Addresses: []string{"192.0.2.1:4420"}, Connect: []string{"nvme connect -t tcp -a 192.0.2.1 -s 4420 -n " + nqn},
		Connected: []api.ConnectedHost{{Host: hostOne, HostID: "11111111-2222-3333-4444-555555555555", Controller: 7, Address: "192.0.2.7:40000", Queues: 4}},
		IO:        &api.IOStats{Reads: 100, ReadBytes: 1 << 20, Writes: 50, WriteBytes: 3 << 19, Flushes: 7, Held: 3},
		Reservations: &api.Reservations{Type: "write-exclusive", Persist: true, Registrants: []api.Registrant{
			{HostID: "11111111-2222-3333-4444-555555555555", Key: "0x1", Holder: true}, {HostID: "66666666-2222-3333-4444-555555555555", Key: "0x2"},
		}},
	}
}

func (f *fakeService) Exports(context.Context) ([]api.Export, error) {
	list := []api.Export{}
	for _, v := range f.volumes {
		if v.NQN != "" {
			list = append(list, exportOf(v.Name))
		}
	}
	return list, nil
}

func (f *fakeService) Export(ctx context.Context, name string) (api.Export, error) {
	v, err := f.Volume(ctx, name)
	return exportOf(v.Name), err
}

func (f *fakeService) CreateExport(ctx context.Context, name string, req api.ExportRequest) (api.Export, error) {
	v, err := f.change(ctx, name, req)
	return exportOf(v.Name), err
}

func (f *fakeService) ChangeExport(ctx context.Context, name string, req api.ChangeExportRequest) (api.Export, error) {
	v, err := f.change(ctx, name, req)
	return exportOf(v.Name), err
}

func (f *fakeService) DeleteExport(_ context.Context, name string, force bool) error {
	f.deleted = append(f.deleted, fmt.Sprintf("export %s force=%v", name, force))
	return f.fail
}

func TestExportOutput(t *testing.T) {
	for name, line := range map[string]string{
		"export-show":      "export show db",
		"export-show-json": "export show db --json",
		"export-list":      "export list",
		"export-list-none": "export list",
		"export-delete":    "export delete db log",
	} {
		t.Run(name, func(t *testing.T) {
			c := newCLI(t)
			if name != "export-list-none" {
				c.svc.volumes[0].NQN = "nqn.2014-08.org.nvmexpress:uuid:" + c.svc.volumes[0].UUID
			}
			out, errOut, code := c.run(strings.Fields(line)...)
			if code != exitOK || errOut != "" {
				t.Errorf("exit code %d: %s", code, errOut)
			}
			golden(t, name, "$ swapback "+line+"\n"+out)
		})
	}
}

func TestExportRequests(t *testing.T) {
	for line, want := range map[string]any{
		"export create db --host " + hostOne + " --host " + hostTwo: api.ExportRequest{Hosts: []string{hostOne, hostTwo}},
		"export create db --authenticate --host " + hostOne:         api.ExportRequest{Hosts: []string{hostOne}, Authenticate: true},
		"export allow db --host " + hostTwo:                         api.ChangeExportRequest{Allow: []string{hostTwo}},
		"export deny db --host " + hostTwo:                          api.ChangeExportRequest{Deny: []string{hostTwo}},
	} {
		t.Run(line, func(t *testing.T) {
			c := newCLI(t)
			out, errOut, code := c.run(strings.Fields(line)...)
			if code != exitOK || !strings.Contains(out, "  nvme connect -t tcp -a 192.0.2.1 -s 4420 -n nqn.2014-08") {
				t.Errorf("exit code %d: %s\n%s", code, errOut, out)
			}
			if d := cmp.Diff([]any{want}, c.svc.created); d != "" {
				t.Errorf("requests (-want +got):\n%s", d)
			}
		})
	}
	c := newCLI(t)
	if _, errOut, code := c.run("export", "delete", "db", "--force"); code != exitOK || !cmp.Equal(c.svc.deleted, []string{"export db force=true"}) {
		t.Errorf("exit code %d: %s; %q", code, errOut, c.svc.deleted)
	}
}

func TestExportUsage(t *testing.T) {
	for line, want := range map[string]string{
		"export create db":           "/etc/nvme/hostnqn",
		"export allow db":            "/etc/nvme/hostnqn",
		"export deny db":             "/etc/nvme/hostnqn",
		"export create --host x":     "accepts 1 arg",
		"export delete":              "requires at least 1",
		"export create db --host me": "the NQN of a host",
	} {
		c := newCLI(t)
		_, errOut, code := c.run(strings.Fields(line)...)
		if code != exitUsage || !strings.Contains(errOut, want) || len(c.svc.created) > 0 {
			t.Errorf("%s: exit code %d: %s", line, code, errOut)
		}
	}
}
