package afar

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/swapback/swapback/api"
)

// showTime bounds the wait for a snapshot to appear here. A host that is told of a new
// namespace looks at once; one whose connection has just come back looks then.
const showTime = time.Minute

// OpenSnapshot implements [api.Service]: the devices are those that this machine sees.
func (s *Service) OpenSnapshot(ctx context.Context, req api.SnapshotRequest) (api.Snapshot, func(context.Context) error, error) {
	me, err := s.caller(ctx)
	if err != nil {
		return api.Snapshot{}, nil, err
	}
	if me == nil {
		return s.Service.OpenSnapshot(ctx, req)
	}
	for _, ref := range req.Volumes {
		v, err := s.volume(ctx, ref)
		if err == nil && v.Device == "" {
			err = s.notHere(ctx, v)
		}
		if err != nil {
			return api.Snapshot{}, nil, err
		}
	}
	req.ToHosts = true
	snap, end, err := s.Service.OpenSnapshot(ctx, req)
	if err != nil {
		return snap, end, err
	}
	limit, cancel := context.WithTimeoutCause(ctx, showTime, fmt.Errorf("not within %v", showTime))
	defer cancel()
	for i := range snap.Volumes {
		if err := s.find(limit, &snap.Volumes[i]); err != nil {
			return api.Snapshot{}, nil, errors.Join(err, end(context.WithoutCancel(ctx)))
		}
	}
	return snap, end, nil
}

// find puts in the device of a volume's snapshot, when there is one here.
func (s *Service) find(ctx context.Context, v *api.SnapshotVolume) error {
	if v.NamespaceUUID == "" {
		return &api.Error{
			Code: api.CodeUnsupported, Message: fmt.Sprintf("the daemon does not show the snapshot of volume %s to hosts", full(v.Volume)),
			Remedy: "see whether its version is that of this program, and whether the volume is still exported (swapback export show " + full(v.Volume) + ")",
		}
	}
	device, err := s.host.Wait(ctx, v.NamespaceUUID)
	if err != nil {
		return &api.Error{
			Code: api.CodeUnsupported, Message: fmt.Sprintf("the snapshot of volume %s has not appeared on this machine (a disk with the UUID %s): %v", full(v.Volume), v.NamespaceUUID, err),
			Remedy: fmt.Sprintf("see whether the connection of %s is alive (nvme list-subsys); reading it shows", s.host.Device(v.Volume.UUID)),
		}
	}
	v.Device = device
	return nil
}

// notHere says how a volume that this machine has no device of can have one.
func (s *Service) notHere(ctx context.Context, v api.Volume) error {
	if v.NQN == "" {
		return notExported(v)
	}
	e, err := s.Service.Export(ctx, v.UUID)
	if err != nil {
		return err
	}
	return &api.Error{
		Code: api.CodeUnsupported, Message: fmt.Sprintf("volume %s is not connected to this machine: what other machines have not written back yet is not known here", full(v)),
		Remedy: "connect it as root: " + connectLine(e),
	}
}
