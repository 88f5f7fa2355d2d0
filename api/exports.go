package api

import (
	"context"

	"github.com/danielgtaylor/huma/v2"
)

// Export is a volume as other hosts see it, by NVMe/TCP. It belongs to the volume's name:
// a swap changes what is behind it, and nothing of what is here.
type Export struct {
	Volume       string   `json:"volume" doc:"POOL/NAME"`
	NQN          string   `json:"nqn" doc:"name of the subsystem that hosts connect to" example:"nqn.2014-08.org.nvmexpress:uuid:33333333-0000-4000-8000-000000000001"`
	UUID         string   `json:"uuid" doc:"identity of the namespace, which is the volume's"`
	Serial       string   `json:"serial"`
	Size         int64    `json:"size"`
	ReadOnly     bool     `json:"read_only"`
	Hosts        []string `json:"hosts" doc:"names (NQN) of the hosts that may connect"`
	Authenticate bool     `json:"authenticate" doc:"whether a host without a secret is refused; one that has a secret always has to prove it"`
	Serving      bool     `json:"serving" doc:"whether hosts can connect now"`
	Error        string   `json:"error,omitempty" doc:"why they can't"`
	Listen       []string `json:"listen" doc:"addresses that the daemon listens on"`
	// Addresses are those that hosts can use: of one that stands for all of the machine's
	// there are those in its place.
	Addresses []string `json:"addresses" doc:"addresses, IP:PORT, by which hosts reach it"`
	// Connect has a command line for each address, to be run on a host.
	Connect   []string        `json:"connect" doc:"what a host runs to connect, for each address"`
	Connected []ConnectedHost `json:"connected" doc:"hosts that are connected now"`
	IO        *IOStats        `json:"io,omitempty" doc:"counters since the daemon serves it"`
	// Reservations are left out while nobody has registered.
	Reservations *Reservations `json:"reservations,omitempty"`
}

// Reservations are what hosts have registered and reserved.
type Reservations struct {
	Type        string       `json:"type" doc:"of the reservation, or none" example:"write-exclusive"`
	Persist     bool         `json:"persist" doc:"whether they outlive the daemon and the machine, as a host has asked"`
	Registrants []Registrant `json:"registrants"`
}

// Registrant is a host that has registered a key.
type Registrant struct {
	HostID string `json:"host_id"`
	Key    string `json:"key" example:"0x1"`
	Holder bool   `json:"holder"`
}

// ConnectedHost is a controller: a host can have several, as when it has several paths.
type ConnectedHost struct {
	Host       string `json:"host" doc:"its NQN"`
	HostID     string `json:"host_id"`
	Controller int    `json:"controller" doc:"identifier of the controller that it has"`
	Address    string `json:"address" doc:"where it is connected from"`
	Queues     int    `json:"queues" doc:"I/O queues"`
}

// ExportRequest begins to export a volume.
type ExportRequest struct {
	Hosts        []string `json:"hosts" minItems:"1" maxItems:"256" nullable:"false" doc:"names (NQN) of the hosts that may connect"`
	Authenticate bool     `json:"authenticate,omitempty" doc:"refuse a host for which the daemon has no secret"`
}

// ChangeExportRequest changes who may use an export. Hosts that are denied lose their
// connections; those of others go on.
type ChangeExportRequest struct {
	Allow        []string `json:"allow,omitempty" maxItems:"256"`
	Deny         []string `json:"deny,omitempty" maxItems:"256"`
	Authenticate *bool    `json:"authenticate,omitempty"`
}

// hostName is the form of an NVMe qualified name, and its length at most.
const (
	hostName    = `^nqn\.\d{4}-\d{2}\.[\x21-\x7e]+$`
	longestHost = 223
)

func boundHosts(s *huma.Schema, fields ...string) *huma.Schema {
	longest := longestHost
	for _, f := range fields {
		host := s.Properties[f].Items
		host.MaxLength, host.Pattern, host.PatternDescription = &longest, hostName, "the NQN of a host, as in /etc/nvme/hostnqn"
	}
	return s
}

// TransformSchema bounds the names of the hosts.
func (ExportRequest) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	return boundHosts(s, "hosts")
}

// TransformSchema bounds the names of the hosts.
func (ChangeExportRequest) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	return boundHosts(s, "allow", "deny")
}

func (s *server) routeExports(h huma.API) {
	route(s, h, op("GET", "/v1/exports", "list-exports", "List the volumes that other hosts may use"),
		func(ctx context.Context, _ *none) ([]Export, error) { return s.svc.Exports(ctx) })
	route(s, h, op("GET", "/v1/volumes/{volume}/export", "show-export", "Show how other hosts reach a volume, and who is connected"),
		func(ctx context.Context, in *VolumePath) (Export, error) { return s.svc.Export(ctx, in.Volume) })
	type create struct {
		VolumePath
		Body ExportRequest
	}
	route(s, h, op("POST", "/v1/volumes/{volume}/export", "create-export", "Let other hosts use a volume by NVMe/TCP"),
		func(ctx context.Context, in *create) (Export, error) {
			return s.svc.CreateExport(ctx, in.Volume, in.Body)
		})
	type change struct {
		VolumePath
		Body ChangeExportRequest
	}
	route(s, h, op("PATCH", "/v1/volumes/{volume}/export", "change-export", "Change which hosts may use a volume"),
		func(ctx context.Context, in *change) (Export, error) {
			return s.svc.ChangeExport(ctx, in.Volume, in.Body)
		})
	type remove struct {
		VolumePath
		Force bool `query:"force" doc:"although hosts are connected"`
	}
	route(s, h, op("DELETE", "/v1/volumes/{volume}/export", "delete-export", "Let no other host use a volume any more"),
		func(ctx context.Context, in *remove) (none, error) {
			return none{}, s.svc.DeleteExport(ctx, in.Volume, in.Force)
		})
}

// Exports implements [Service].
func (c *Client) Exports(ctx context.Context) (out []Export, err error) {
	return out, c.call(ctx, "GET", "/v1/exports", nil, &out)
}

// Export implements [Service].
func (c *Client) Export(ctx context.Context, volume string) (out Export, err error) {
	return out, c.call(ctx, "GET", volumePath(volume)+"/export", nil, &out)
}

// CreateExport implements [Service].
func (c *Client) CreateExport(ctx context.Context, volume string, req ExportRequest) (out Export, err error) {
	return out, c.call(ctx, "POST", volumePath(volume)+"/export", req, &out)
}

// ChangeExport implements [Service].
func (c *Client) ChangeExport(ctx context.Context, volume string, req ChangeExportRequest) (out Export, err error) {
	return out, c.call(ctx, "PATCH", volumePath(volume)+"/export", req, &out)
}

// DeleteExport implements [Service].
func (c *Client) DeleteExport(ctx context.Context, volume string, force bool) error {
	return c.call(ctx, "DELETE", volumePath(volume)+"/export"+forceQuery(force), nil, nil)
}
