package remote

import (
	"context"
	"strings"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/access"
)

// Exports lists those of volumes that the client sees.
func (g *guard) Exports(ctx context.Context) ([]api.Export, error) {
	c, _, err := g.begin(ctx, "list-exports")
	if err != nil {
		return nil, err
	}
	all, err := g.svc.Exports(ctx)
	if err != nil {
		return nil, err
	}
	list := []api.Export{}
	for _, e := range all {
		if pool, name, ok := strings.Cut(e.Volume, "/"); ok && c.table.May(c.name, access.List, pool, name) {
			list = append(list, e)
		}
	}
	return list, nil
}

func (g *guard) Export(ctx context.Context, ref string) (api.Export, error) {
	return on(ctx, g, "show-export", ref, func(uuid string) (api.Export, error) { return g.svc.Export(ctx, uuid) })
}

// CreateExport, ChangeExport and DeleteExport are done locally only: begin refuses them.
func (g *guard) CreateExport(ctx context.Context, ref string, req api.ExportRequest) (api.Export, error) {
	return on(ctx, g, "create-export", ref, func(uuid string) (api.Export, error) { return g.svc.CreateExport(ctx, uuid, req) })
}

func (g *guard) ChangeExport(ctx context.Context, ref string, req api.ChangeExportRequest) (api.Export, error) {
	return on(ctx, g, "change-export", ref, func(uuid string) (api.Export, error) { return g.svc.ChangeExport(ctx, uuid, req) })
}

func (g *guard) DeleteExport(ctx context.Context, ref string, force bool) error {
	_, err := on(ctx, g, "delete-export", ref, func(uuid string) (struct{}, error) { return struct{}{}, g.svc.DeleteExport(ctx, uuid, force) })
	return err
}
