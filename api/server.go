package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// NewHandler returns the HTTP handler that serves svc, and metrics at /metrics
// unless that is nil. It documents itself at /openapi.json, /openapi.yaml and
// /docs. Requests that fail below with
// something else than an [*Error] are logged and answered as [CodeInternal].
func NewHandler(svc Service, metrics http.Handler, version string, log *slog.Logger) http.Handler {
	return newHandler(svc, metrics, huma.DefaultConfig("swapbackd", version), log, nil)
}

// NewGuardedHandler is NewHandler without the pages that document it, and with a
// guard: check hears the id of each operation before anything of its request is
// read, and when it returns an error, an [*Error] at best, that is the answer.
func NewGuardedHandler(svc Service, metrics http.Handler, version string, log *slog.Logger, check func(ctx context.Context, operation string) error) http.Handler {
	config := huma.DefaultConfig("swapbackd", version)
	config.DocsPath, config.OpenAPIPath = "", ""
	return newHandler(svc, metrics, config, log, check)
}

func newHandler(svc Service, metrics http.Handler, config huma.Config, log *slog.Logger, check func(context.Context, string) error) http.Handler {
	mux := http.NewServeMux()
	config.Info.Description = "Virtual disks that can be put back: pools, volumes, snapshots and swaps."
	// The schema links that huma adds to every body are of use to a browser
	// only, and they would end up in what --json prints.
	config.SchemasPath = ""
	config.CreateHooks = nil
	config.Transformers = []huma.Transformer{fewMistakes}
	h := humago.New(mux, config)
	s := &server{svc: svc, log: log}
	if check != nil {
		h.UseMiddleware(s.guard(check))
	}
	s.routePools(h)
	s.routeVolumes(h)
	s.routeSwap(h)
	s.routeExports(h)
	if metrics != nil {
		routeMetrics(h, metrics)
	}
	return mux
}

// guard answers with what check says against an operation.
func (s *server) guard(check func(context.Context, string) error) func(huma.Context, func(huma.Context)) {
	return func(hc huma.Context, next func(huma.Context)) {
		id := hc.Operation().OperationID
		err := check(hc.Context(), id)
		if err == nil {
			next(hc)
			return
		}
		var e *Error
		_ = errors.As(s.failure(id, err), &e) // it is one
		hc.SetHeader("Content-Type", "application/json")
		hc.SetStatus(e.Status)
		if err := json.NewEncoder(hc.BodyWriter()).Encode(e); err != nil {
			s.log.Debug("answer not sent", "operation", id, "err", err)
		}
	}
}

// OpenAPI returns the document that describes the API, as YAML.
func OpenAPI(version string) ([]byte, error) {
	config := huma.DefaultConfig("swapbackd", version)
	config.CreateHooks = nil
	h := humago.New(http.NewServeMux(), config)
	s := &server{log: slog.New(slog.DiscardHandler)}
	s.routePools(h)
	s.routeVolumes(h)
	s.routeSwap(h)
	s.routeExports(h)
	routeMetrics(h, http.NotFoundHandler())
	return h.OpenAPI().YAML()
}

type server struct {
	svc Service
	log *slog.Logger
}

// PoolPath and VolumePath are exported because huma passes over embedded types
// that are not.
type (
	none        struct{}
	body[T any] struct{ Body T }
	PoolPath    struct {
		Pool string `path:"pool" maxLength:"64" doc:"name or UUID"`
	}
	VolumePath struct {
		Volume string `path:"volume" maxLength:"129" doc:"NAME, POOL/NAME (escaped) or UUID"`
	}
)

// failure turns an error of the service into what the API answers.
func (s *server) failure(operation string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		// What was wrapped around the Error tells more than the Error alone.
		if err != error(e) {
			c := *e
			e = &c
		}
		e.Status = e.GetStatus()
		return e
	}
	if errors.Is(err, context.Canceled) {
		return &Error{Status: 499, Code: CodeInternal, Message: operation + ": the client went away"}
	}
	s.log.Error("request failed", "operation", operation, "err", err)
	return &Error{Status: http.StatusInternalServerError, Code: CodeInternal, Message: err.Error()}
}

const (
	// maxBody bounds a request: a pool of 1024 disks with long names fits in.
	maxBody = 128 << 10
	// maxMistakes bounds those that one answer lists. A small body can have one
	// in every other byte, and each is told in a hundred.
	maxMistakes = 20
)

// fewMistakes shortens what is said of a request's mistakes. It leaves out the
// values: the caller has sent them and knows them.
func fewMistakes(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	if rest := len(m.Errors) - maxMistakes; rest > 0 {
		m.Errors = append(m.Errors[:maxMistakes:maxMistakes], &huma.ErrorDetail{Message: fmt.Sprintf("and %d mistakes more", rest), Location: "body"})
	}
	for _, e := range m.Errors {
		e.Value = nil
		e.Message = fmt.Sprintf("%.300s", e.Message)
		e.Location = fmt.Sprintf("%.300s", e.Location)
	}
	return v, nil
}

// op describes an operation; the summary shows up in the OpenAPI document.
func op(method, path, id, summary string) huma.Operation {
	return huma.Operation{Method: method, Path: path, OperationID: id, Summary: summary, MaxBodyBytes: maxBody}
}

// route registers one operation: in goes to call, what call returns goes out.
func route[I, O any](s *server, h huma.API, o huma.Operation, call func(context.Context, *I) (O, error)) {
	huma.Register(h, o, func(ctx context.Context, in *I) (*body[O], error) {
		out, err := call(ctx, in)
		if err != nil {
			return nil, s.failure(o.OperationID, err)
		}
		return &body[O]{out}, nil
	})
}

func (s *server) routePools(h huma.API) {
	route(s, h, op("GET", "/v1/info", "info", "Describe the daemon and its kernel"),
		func(ctx context.Context, _ *none) (Info, error) { return s.svc.Info(ctx) })
	route(s, h, op("GET", "/v1/pools", "list-pools", "List the open pools"),
		func(ctx context.Context, _ *none) ([]Pool, error) { return s.svc.Pools(ctx) })
	route(s, h, op("POST", "/v1/pools", "create-pool", "Create a pool on block devices"),
		func(ctx context.Context, in *body[CreatePoolRequest]) (Pool, error) {
			return s.svc.CreatePool(ctx, in.Body)
		})
	route(s, h, op("GET", "/v1/pools/{pool}", "show-pool", "Show a pool"),
		func(ctx context.Context, in *PoolPath) (Pool, error) { return s.svc.Pool(ctx, in.Pool) })
	type deletePool struct {
		PoolPath
		Force bool `query:"force" doc:"delete the pool's volumes too"`
	}
	route(s, h, op("DELETE", "/v1/pools/{pool}", "delete-pool", "Delete a pool and wipe its labels"),
		func(ctx context.Context, in *deletePool) (none, error) {
			return none{}, s.svc.DeletePool(ctx, in.Pool, in.Force)
		})
	route(s, h, op("POST", "/v1/pools/{pool}/check", "check-pool", "Check a pool's consistency"),
		func(ctx context.Context, in *PoolPath) (CheckReport, error) { return s.svc.CheckPool(ctx, in.Pool) })
	route(s, h, op("POST", "/v1/pools/{pool}/repair", "repair-pool", "Check a pool and mend what needs no decision"),
		func(ctx context.Context, in *PoolPath) (CheckReport, error) { return s.svc.RepairPool(ctx, in.Pool) })
	route(s, h, op("POST", "/v1/pools/{pool}/rejoin", "rejoin-pool", "Take members back that were missing or failed"),
		func(ctx context.Context, in *PoolPath) (Pool, error) { return s.svc.RejoinPool(ctx, in.Pool) })
	route(s, h, op("GET", "/v1/pools/{pool}/metadata", "dump-pool-metadata", "Dump a pool's metadata as text"),
		func(ctx context.Context, in *PoolPath) (PoolMetadata, error) { return s.svc.PoolMetadata(ctx, in.Pool) })
}

func (s *server) routeVolumes(h huma.API) {
	type listVolumes struct {
		Pool string `query:"pool" maxLength:"64" doc:"only this pool's volumes"`
	}
	route(s, h, op("GET", "/v1/volumes", "list-volumes", "List volumes"),
		func(ctx context.Context, in *listVolumes) ([]Volume, error) { return s.svc.Volumes(ctx, in.Pool) })
	route(s, h, op("POST", "/v1/volumes", "create-volume", "Create a volume"),
		func(ctx context.Context, in *body[CreateVolumeRequest]) (Volume, error) {
			return s.svc.CreateVolume(ctx, in.Body)
		})
	route(s, h, op("GET", "/v1/volumes/{volume}", "show-volume", "Show a volume and its position"),
		func(ctx context.Context, in *VolumePath) (Volume, error) { return s.svc.Volume(ctx, in.Volume) })
	type deleteVolume struct {
		VolumePath
		Force bool `query:"force" doc:"delete although the volume is in quarantine"`
	}
	route(s, h, op("DELETE", "/v1/volumes/{volume}", "delete-volume", "Delete a volume"),
		func(ctx context.Context, in *deleteVolume) (none, error) {
			return none{}, s.svc.DeleteVolume(ctx, in.Volume, in.Force)
		})
	type grow struct {
		VolumePath
		Body GrowRequest
	}
	route(s, h, op("POST", "/v1/volumes/{volume}/grow", "grow-volume", "Give a volume more space"),
		func(ctx context.Context, in *grow) (Volume, error) {
			return s.svc.GrowVolume(ctx, in.Volume, in.Body.Size)
		})
	type attach struct {
		VolumePath
		Body AttachRequest
	}
	route(s, h, op("POST", "/v1/volumes/{volume}/attach", "attach-volume", "Serve a volume as a block device"),
		func(ctx context.Context, in *attach) (Volume, error) { return s.svc.Attach(ctx, in.Volume, in.Body) })
	route(s, h, op("POST", "/v1/volumes/{volume}/detach", "detach-volume", "Take a volume's block device away"),
		func(ctx context.Context, in *VolumePath) (Volume, error) { return s.svc.Detach(ctx, in.Volume) })
	type quarantine struct {
		VolumePath
		Body QuarantineRequest
	}
	route(s, h, op("POST", "/v1/volumes/{volume}/quarantine", "quarantine-volume", "Label a volume as failed data and make it read-only"),
		func(ctx context.Context, in *quarantine) (Volume, error) {
			return s.svc.Quarantine(ctx, in.Volume, in.Body)
		})
	route(s, h, op("DELETE", "/v1/volumes/{volume}/quarantine", "release-volume", "Release a volume from quarantine"),
		func(ctx context.Context, in *VolumePath) (Volume, error) {
			return s.svc.ReleaseQuarantine(ctx, in.Volume)
		})
	type descends struct {
		VolumePath
		Body DescendsRequest
	}
	route(s, h, op("PUT", "/v1/volumes/{volume}/descends-from", "set-descends-from", "Record the backup a volume's content is equal to"),
		func(ctx context.Context, in *descends) (Volume, error) {
			return s.svc.SetDescendsFrom(ctx, in.Volume, in.Body)
		})
	route(s, h, op("GET", "/v1/volumes/{volume}/holders", "list-holders", "Name everybody who holds a volume's block device"),
		func(ctx context.Context, in *VolumePath) ([]Holder, error) { return s.svc.Holders(ctx, in.Volume) })
}

func (s *server) routeSwap(h huma.API) {
	route(s, h, op("POST", "/v1/swaps", "swap", "Exchange the positions of pairs of volumes"),
		func(ctx context.Context, in *body[SwapRequest]) (SwapResult, error) { return s.svc.Swap(ctx, in.Body) })

	o := op("POST", "/v1/snapshots", "open-snapshot", "Take an instant of volumes and hold it")
	o.Description = "Answers one JSON object and then keeps the connection open. " +
		"The snapshot lives until the client closes the connection, so a client that dies leaves none behind."
	huma.Register(h, o, func(ctx context.Context, in *body[SnapshotRequest]) (*huma.StreamResponse, error) {
		snap, end, err := s.svc.OpenSnapshot(ctx, in.Body)
		if err != nil {
			return nil, s.failure(o.OperationID, err)
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) { s.holdSnapshot(hc, snap, end) }}, nil
	})
}

// holdSnapshot sends the snapshot and ends it when the client has gone.
func (s *server) holdSnapshot(hc huma.Context, snap Snapshot, end func(context.Context) error) {
	defer func() {
		// The request's context is over by now; the clean-up must not be.
		if err := end(context.WithoutCancel(hc.Context())); err != nil {
			s.log.Error("snapshot not removed", "err", err)
		}
	}()
	hc.SetHeader("Content-Type", "application/json")
	w := hc.BodyWriter()
	if err := json.NewEncoder(w).Encode(snap); err != nil {
		return
	}
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	<-hc.Context().Done()
}

// routeMetrics passes requests on as they came: which format of Prometheus is
// answered is for the handler and its client to agree on.
func routeMetrics(h huma.API, metrics http.Handler) {
	o := op("GET", "/metrics", "metrics", "Counters and the histogram of the swap pause, for Prometheus")
	o.Responses = map[string]*huma.Response{"200": {
		Description: "OK", Content: map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}}
	huma.Register(h, o, func(context.Context, *none) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			metrics.ServeHTTP(w, r)
		}}, nil
	})
}
