package api

import (
	"context"
	"reflect"
	"strings"
	"testing"
)

const oneHost = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"

func (f *fake) Exports(context.Context) ([]Export, error) {
	return []Export{{Volume: "tank/db", Hosts: []string{oneHost}}}, f.err
}

func (f *fake) Export(_ context.Context, ref string) (Export, error) {
	f.got = ref
	return Export{Volume: ref, Connected: []ConnectedHost{{Host: oneHost, Queues: 2}}}, f.err
}

func (f *fake) CreateExport(_ context.Context, ref string, req ExportRequest) (Export, error) {
	f.got = req
	return Export{Volume: ref, Hosts: req.Hosts}, f.err
}

func (f *fake) ChangeExport(_ context.Context, ref string, req ChangeExportRequest) (Export, error) {
	f.got = req
	return Export{Volume: ref}, f.err
}

func (f *fake) DeleteExport(_ context.Context, ref string, force bool) error {
	f.got = []any{ref, force}
	return f.err
}

func TestExportsTravel(t *testing.T) {
	f := &fake{}
	c, ctx := connect(t, f), t.Context()
	if list, err := c.Exports(ctx); err != nil || len(list) != 1 || list[0].Hosts[0] != oneHost {
		t.Errorf("Exports: %+v, %v", list, err)
	}
	if e, err := c.Export(ctx, "tank/db"); err != nil || f.got != "tank/db" || e.Connected[0].Queues != 2 {
		t.Errorf("Export: %+v, %v; service saw %v", e, err, f.got)
	}
	create := ExportRequest{Hosts: []string{oneHost}, Authenticate: true}
	if e, err := c.CreateExport(ctx, "db", create); err != nil || !reflect.DeepEqual(f.got, create) || e.Volume != "db" {
		t.Errorf("CreateExport: %+v, %v; service saw %+v", e, err, f.got)
	}
	no := false
	change := ChangeExportRequest{Allow: []string{oneHost}, Deny: []string{oneHost + "x"}, Authenticate: &no}
	if _, err := c.ChangeExport(ctx, "db", change); err != nil || !reflect.DeepEqual(f.got, change) {
		t.Errorf("ChangeExport: %v; service saw %+v", err, f.got)
	}
	if err := c.DeleteExport(ctx, "db", true); err != nil || !reflect.DeepEqual(f.got, []any{"db", true}) {
		t.Errorf("DeleteExport: %v; service saw %v", err, f.got)
	}
}

func TestHostNamesAreChecked(t *testing.T) {
	f := &fake{}
	c := connect(t, f)
	for _, hosts := range [][]string{nil, {""}, {"host"}, {"nqn.2014-08."}, {oneHost + " "}, {oneHost + "\n"}, {"nqn.2014-08.org:" + strings.Repeat("x", 223)}, {oneHost, "nqn.1.org"}} {
		f.got = nil
		if _, err := c.CreateExport(t.Context(), "db", ExportRequest{Hosts: hosts}); CodeOf(err) != CodeInvalid || f.got != nil {
			t.Errorf("hosts %q: %v; service saw %v", hosts, err, f.got)
		}
		if len(hosts) == 0 {
			continue
		}
		if _, err := c.ChangeExport(t.Context(), "db", ChangeExportRequest{Allow: hosts}); CodeOf(err) != CodeInvalid || f.got != nil {
			t.Errorf("allow %q: %v; service saw %v", hosts, err, f.got)
		}
	}
}

func (r *recorder) export(name, volume string, hosts ...string) (Export, error) {
	r.call(name)
	r.ref(volume)
	for _, h := range hosts {
		r.want(strings.HasPrefix(h, "nqn.") && len(h) <= 223, "host %q", h)
	}
	return Export{Volume: volume}, nil
}

func (r *recorder) Exports(context.Context) ([]Export, error) {
	r.call("list-exports")
	return nil, nil
}

func (r *recorder) Export(_ context.Context, volume string) (Export, error) {
	return r.export("show-export", volume)
}

func (r *recorder) CreateExport(_ context.Context, volume string, req ExportRequest) (Export, error) {
	r.want(len(req.Hosts) >= 1 && len(req.Hosts) <= 256, "%d hosts", len(req.Hosts))
	return r.export("create-export", volume, req.Hosts...)
}

func (r *recorder) ChangeExport(_ context.Context, volume string, req ChangeExportRequest) (Export, error) {
	return r.export("change-export", volume, append(req.Allow, req.Deny...)...)
}

func (r *recorder) DeleteExport(_ context.Context, volume string, _ bool) error {
	_, err := r.export("delete-export", volume)
	return err
}
