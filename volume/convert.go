package volume

import (
	"errors"
	"fmt"
	"strings"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/holders"
	"github.com/swapback/swapback/ublk"
)

// describe returns what the API shows of a volume.
func (c *Controller) describe(t target) api.Volume {
	v := api.Volume{
		Name: t.info.Name, Pool: t.pool.Info().Name, UUID: t.uuid(), Size: t.info.Size,
		State: api.StateDetached, Attached: t.info.Attached, ReadOnly: t.info.ReadOnly,
		DeviceNumber: t.info.DeviceNumber, Backend: t.info.Device, Snapshot: t.info.Snapshot,
		Position: describePosition(t.info.Position),
	}
	c.mu.Lock()
	e, operation := c.exports[t.uuid()], c.claims[t.uuid()]
	readOnly := e != nil && e.readOnly
	c.mu.Unlock()
	if t.info.Export != nil {
		v.NQN = nqnOf(t.uuid())
	}
	v.Changed = c.describeChanges(t.info.Position.ID)
	v.ReadOnly = v.ReadOnly || readOnly || v.Position.Quarantine != nil
	switch {
	case e == nil:
	case e.trouble() != nil:
		v.State, v.Error = api.StateFailed, e.trouble().Error()
	default:
		v.State = api.StateServing
		info := e.dev.Info()
		v.Device, v.Link, v.Queues = e.dev.Path(), e.link, info.Queues
		v.Depth, v.MaxIO = info.Depth, int64(info.MaxIOBytes)
		v.DataPath, v.UblkFlags = info.Flags.DataPath().String(), info.Flags.Names()
		v.IO = describeIO(e.dev.Stats())
	}
	if e != nil && e.madeReadOnly(t) {
		v.ReadOnly = true
		if v.Error == "" && operation == "" { // else somebody is at it
			v.Error = stillReadOnly
		}
	}
	if t.info.Degraded != "" {
		v.Degraded = true
		if v.State == api.StateServing {
			v.State = api.StateDegraded
		}
		if v.Error == "" {
			v.Error = t.info.Degraded
		}
	}
	v.SnapshotFull = v.Snapshot && snapshotFull(t)
	if operation == swapOperation {
		v.State = api.StateBusy
	}
	return v
}

func describePosition(p dmswap.Position) api.Position {
	out := api.Position{
		ID: p.ID, Generation: p.Generation, Stripes: max(1, p.Stripes), StripeSize: p.StripeSize,
		Segments: []api.Segment{}, DescendsFrom: p.DescendsFrom,
	}
	for _, s := range p.Segments {
		seg := api.Segment{Extents: s.Extents}
		for _, st := range s.Stripes {
			seg.Stripes = append(seg.Stripes, api.SegmentStripe(st))
		}
		out.Segments = append(out.Segments, seg)
	}
	if p.Quarantine != nil {
		q := api.Quarantine(*p.Quarantine)
		out.Quarantine = &q
	}
	return out
}

func describeIO(s ublk.Stats) *api.IOStats {
	return &api.IOStats{
		Reads: s.Read.Ops, ReadBytes: s.Read.Bytes,
		Writes: s.Write.Ops, WriteBytes: s.Write.Bytes,
		Flushes: s.Flush.Ops, Discards: s.Discard.Ops, WriteZeroes: s.WriteZeroes.Ops,
		Errors: s.Read.Errors + s.Write.Errors + s.Flush.Errors + s.Discard.Errors + s.WriteZeroes.Errors,
		Held:   s.Held, Refused: s.Refused,
	}
}

func describePool(p *dmswap.Pool) api.Pool {
	info := p.Info()
	out := api.Pool{
		Name: info.Name, UUID: info.UUID, Created: info.Created,
		ExtentSize: info.ExtentSize, Generation: info.Generation, Volumes: len(p.Volumes()),
		Degraded: info.Degraded(),
	}
	for _, m := range info.Members {
		out.Members = append(out.Members, api.Member{
			Index: m.Index, UUID: m.UUID, Path: m.Path, State: m.State, Problem: m.Problem,
			Extents: m.Extents, FreeExtents: m.FreeExtents, DataOffset: m.DataOffset,
		})
		out.Extents += m.Extents
		out.FreeExtents += m.FreeExtents
	}
	out.Size, out.Free = out.Extents*out.ExtentSize, out.FreeExtents*out.ExtentSize
	return out
}

func apiHolders(list []holders.Holder) []api.Holder {
	out := make([]api.Holder, len(list))
	for i, h := range list {
		out[i] = api.Holder{Kind: h.Kind, Device: h.Device, PID: h.PID, Command: h.Command, Detail: h.Detail}
	}
	return out
}

// fromPool gives an error of package dmswap the code and the remedy that the
// API answers with. nil stays nil.
func fromPool(what string, err error) error {
	if err == nil {
		return nil
	}
	// The text of the error ends with its remedy, which has a place of its own.
	e := &api.Error{Remedy: dmswap.Remedy(err)}
	e.Message = strings.TrimSuffix(fmt.Sprintf("%s: %v", what, err), " ("+e.Remedy+")")
	for _, k := range []struct {
		kind error
		code string
	}{
		{dmswap.ErrNotFound, api.CodeNotFound},
		{dmswap.ErrExists, api.CodeExists},
		{dmswap.ErrInvalid, api.CodeInvalid},
		{dmswap.ErrNoSpace, api.CodeNoSpace},
		{dmswap.ErrGeneration, api.CodeGeneration},
		{dmswap.ErrQuarantined, api.CodeQuarantined},
		{dmswap.ErrDegraded, api.CodeDegraded},
		{dmswap.ErrSnapshot, api.CodeBusy},
		{dmswap.ErrBusy, api.CodeBusy},
		{dmswap.ErrInUse, api.CodeInUse},
		{dmswap.ErrUnsupported, api.CodeUnsupported},
		{dmswap.ErrNoPool, api.CodeNotFound},
		{dmswap.ErrDamaged, api.CodeInternal},
		{dmswap.ErrClosed, api.CodeNotFound},
	} {
		if errors.Is(err, k.kind) {
			e.Code = k.code
			return e
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}
