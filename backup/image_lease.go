package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store"
)

// leaseEvery is how often an Image looks at its lease. It is a small part of the
// time after which a lease in a bucket counts as dead.
const leaseEvery = 5 * time.Second

// imageLease is what keeps prune and delete from an Image's packs.
type imageLease struct {
	mu      sync.Mutex
	session *session
	lost    error // told
}

// end gives the lease back.
func (l *imageLease) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session != nil {
		l.session.end()
		l.session = nil
	}
}

// keepLease looks after the lease until the image is closed.
func (im *Image) keepLease() {
	tick := time.NewTicker(leaseEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			im.checkLease(im.ctx)
			im.seekHealed(im.ctx)
		case <-im.ctx.Done():
			return
		}
	}
}

// checkLease tells of a lease that was lost, as in a bucket that could not be
// reached for long, and takes another. With that in hand the manifest is read
// again: as long as it is there nothing that it names was removed, or will be, as
// for a new operation (see gc.go). It may name other places than before, for what
// was moved (see moving.go).
func (im *Image) checkLease(ctx context.Context) {
	l := &im.lease
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session == nil || l.session.hold == nil || errors.Is(l.lost, ErrNotFound) {
		return
	}
	err := l.session.hold.Err()
	if err == nil {
		return
	}
	if l.lost == nil {
		l.lost = err
		im.tellLease(fmt.Errorf("the lease on the repository was lost; if the backup is deleted its data may go: %w", err))
	}
	s, err := im.r.beginReading(ctx, "image", im.log)
	if err != nil {
		return // it can't be reached still
	}
	b, err := im.r.readManifest(ctx, im.b.ID)
	if err == nil {
		err = im.follow(b)
	}
	if err != nil {
		s.end()
		if errors.Is(err, store.ErrNotExist) {
			l.lost = &Error{Kind: ErrNotFound, Op: im.op, Detail: "it was deleted while nothing kept its data",
				Remedy: "copy what is needed at once: parts of it may be gone already"}
			im.tellLease(l.lost)
		}
		return
	}
	l.session.end()
	l.session, l.lost = s, nil
	im.tellLease(nil)
}

// follow takes the root of the image's table from a manifest that was read again.
func (im *Image) follow(b Backup) error {
	i := slices.IndexFunc(b.Volumes, func(v BackupVolume) bool { return v.VolumeRef == im.v.VolumeRef })
	if i < 0 {
		return fmt.Errorf("%w: backup %s has another volume %s than before", format.ErrCorrupt, b.ID, im.v.name())
	}
	_, root, err := b.Volumes[i].table()
	if err != nil {
		return err
	}
	im.root.Store(&root)
	return nil
}

func (im *Image) tellLease(err error) {
	if err != nil {
		im.log.Error("lease of an image", "backup", im.b.ID, "repository", im.r.Location(), "err", err)
	} else {
		im.log.Warn("lease of an image is there again", "backup", im.b.ID, "repository", im.r.Location())
	}
	if im.o.Lease != nil {
		im.o.Lease(err)
	}
}
