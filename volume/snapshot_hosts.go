package volume

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/google/uuid"

	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/nvmeof"
)

// shown is the snapshot of a volume as the volume's hosts see it: one more namespace of its
// subsystem, read-only, until the snapshot ends.
type shown struct {
	remote  *remote
	backend *nvmeof.Backend
	id      uint32 // NSID
	uuid    uuid.UUID
}

// snapshotGroup is the ANA group of snapshots: their hosts read on when the volume is not to
// be reached.
const snapshotGroup = 2

// Snapshots get the identifiers behind the volume's own.
const (
	firstSnapshot = remoteNamespace + 1
	lastSnapshot  = 1024 // the most that a subsystem takes
)

// nextSnapshot is an identifier that no snapshot has had for long. A host that has not
// heard yet that a namespace is gone, and finds another under its identifier, takes the
// old one away and does not look again for the new (Linux, nvme_validate_ns).
func (r *remote) nextSnapshot() uint32 {
	r.naming.Lock()
	defer r.naming.Unlock()
	const n = lastSnapshot - firstSnapshot + 1
	if r.named == 0 {
		// Not where an earlier process began.
		r.named = firstSnapshot + rand.Uint32N(n)
	} else {
		r.named = firstSnapshot + (r.named-firstSnapshot+1)%n
	}
	return r.named
}

// show serves the device of a snapshot to the volume's hosts. Each has an identity of its
// own, so that no page that a host keeps of one is taken for another's.
func (r *remote) show(device string) (*shown, error) {
	backend, err := nvmeof.OpenBackend(device, nvmeof.Limits{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("snapshot of volume %s for its hosts: %w", r.name, err)
	}
	s := &shown{remote: r, backend: backend, id: r.nextSnapshot(), uuid: uuid.New()}
	_, err = r.subsys.AddNamespace(nvmeof.NamespaceConfig{
		ID: s.id, Backend: backend, UUID: s.uuid, NGUID: s.uuid, ANAGroup: snapshotGroup, ReadOnly: true,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("snapshot of volume %s for its hosts: %w", r.name, err), backend.Close())
	}
	failpoint.Hit("snapshot: shown to hosts")
	return s, nil
}

// hide ends that. What a host still has in flight then keeps the device open, and reads what
// is left of the snapshot.
func (s *shown) hide(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	if err := s.remote.subsys.RemoveNamespace(limit, s.id); err != nil {
		return fmt.Errorf("snapshot of volume %s: %w", s.remote.name, err)
	}
	failpoint.Hit("snapshot close: hidden from hosts")
	return s.backend.Close()
}
