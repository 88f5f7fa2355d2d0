package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
)

// Prune removes packs that no backup needs, such as a crashed backup left, and when it
// repacks, also what nobody needs of the others. It may run beside any other
// operation; see gc.go and moving.
func (r *Repository) Prune(ctx context.Context, o PruneOptions) (rep PruneReport, err error) {
	op := "prune " + r.Location()
	if o.Repack && !(o.MaxUnused >= 0 && o.MaxUnused <= 1) {
		return rep, &Error{Kind: ErrInvalid, Op: op, Detail: fmt.Sprintf("%v may be unused", o.MaxUnused), Remedy: "name a share between 0 and 1"}
	}
	if o.DryRun {
		rep, err = r.pruneDry(ctx, o)
		return rep, r.kept(op, err)
	}
	if err := r.pruneWhole(ctx, &rep); err != nil || !o.Repack {
		return rep, r.kept(op, err)
	}
	// Nodes that are written anew leave others behind, in packs that were full until
	// then, and there may be more to move than at once.
	left := make(map[format.ID]bool)
	for more := true; more; {
		if more, err = r.repack(ctx, o, left, &rep); err != nil {
			return rep, r.kept(op, err)
		}
	}
	rep.Repacked = len(left)
	if rep.Repacked > 0 {
		err = r.pruneWhole(ctx, &rep)
	}
	return rep, r.kept(op, err)
}

// pruneWhole removes whole packs.
func (r *Repository) pruneWhole(ctx context.Context, rep *PruneReport) error {
	lock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.release()
	if err := r.sweepPending(ctx, lock, rep); err != nil {
		return err
	}
	return r.sweep(ctx, lock, rep)
}

// inUse is what backups need of each pack, and what is there.
type inUse struct {
	list  []Backup
	packs map[format.ID]packUse
	sizes map[format.ID]int64 // of all packs
}

// lookAtUse reads all tables, within a session. It fails when one can't be read.
func (r *Repository) lookAtUse(ctx context.Context) (*inUse, error) {
	u := &inUse{packs: make(map[format.ID]packUse), sizes: make(map[format.ID]int64)}
	// Packs before manifests, as ever.
	infos, err := r.store.List(ctx, pack.Dir)
	if err != nil {
		return nil, err
	}
	for _, i := range infos {
		if id, ok := packID(i.Name); ok {
			u.sizes[id] = i.Size
		}
	}
	ids, err := r.ids(ctx)
	if err != nil {
		return nil, err
	}
	t, err := r.newTables(ctx)
	if err != nil {
		return nil, err
	}
	defer t.close()
	count := func(_ int64, ref format.Ref) error {
		u.packs[ref.Pack] = u.packs[ref.Pack].with(ref)
		return nil
	}
	for _, id := range ids {
		b, err := r.readManifest(ctx, id)
		if errors.Is(err, store.ErrNotExist) {
			continue // deleted since
		}
		if err != nil {
			return nil, err
		}
		u.list = append(u.list, b)
		for _, v := range b.Volumes {
			if err := t.volume(b, v, seen{chunk: count, node: count}); err != nil {
				return nil, err
			}
		}
	}
	return u, nil
}

// maxMoved bounds how many blobs are moved at once, at about 250 bytes each.
const maxMoved = 1 << 18

// choose returns the packs to leave so that no more than a share of all bytes is
// unused, those first that have most, or as many of them as can be moved at once; and
// what is unused in the others.
func (u *inUse) choose(most float64) (leave map[format.ID]bool, unused int64) {
	type candidate struct {
		id     format.ID
		unused int64
		share  float64
	}
	var all int64
	var list []candidate
	for id, use := range u.packs {
		size, there := u.sizes[id]
		if !there {
			continue // its table told, or it is newer than the list of packs
		}
		all += size
		if n := use.unused(size); n > 0 {
			unused += n
			list = append(list, candidate{id, n, float64(n) / float64(size)})
		}
	}
	slices.SortFunc(list, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.share, a.share), slices.Compare(a.id[:], b.id[:]))
	})
	leave = make(map[format.ID]bool)
	var blobs int64
	limit := int64(math.Floor(most * float64(all)))
	for _, c := range list {
		if unused <= limit {
			break
		}
		if blobs += u.packs[c.id].blobs; blobs > maxMoved && len(leave) > 0 {
			break
		}
		leave[c.id] = true
		unused -= c.unused
	}
	return leave, unused
}

// repack moves what is needed out of packs of which little is needed, which it adds
// to left. more says that something has moved, so that it is worth to look again.
func (r *Repository) repack(ctx context.Context, o PruneOptions, left map[format.ID]bool, rep *PruneReport) (more bool, err error) {
	log := logger(o.Logger)
	s, err := r.begin(ctx, "prune", log)
	if err != nil {
		return false, err
	}
	defer s.end()
	u, err := r.lookAtUse(ctx)
	if err != nil {
		return false, err
	}
	leave, unused := u.choose(o.MaxUnused)
	rep.Unused = unused
	if len(leave) == 0 {
		return false, nil
	}
	m, err := r.newMoving(s, log)
	if err != nil {
		return false, err
	}
	defer m.close()
	changed, err := r.moveOut(ctx, m, u.list, leave)
	if err != nil {
		return false, err
	}
	maps.Copy(left, leave)
	rep.Moved += m.chunks.Bytes() + m.nodes.Bytes()
	log.Info("what is needed of packs has moved", "packs", len(leave), "backups", len(changed))
	return len(changed) > 0, nil
}

// moveOut moves all that backups need out of packs.
func (r *Repository) moveOut(ctx context.Context, m *moving, list []Backup, leave map[format.ID]bool) ([]string, error) {
	err := m.leavePacks(ctx, list, leave)
	for _, b := range list {
		if err == nil {
			err = m.backup(ctx, b)
		}
	}
	if err != nil {
		m.discard(ctx)
		return nil, err
	}
	changed, _, err := m.commit(ctx)
	return changed, err
}

// pruneDry tells what Prune would do.
func (r *Repository) pruneDry(ctx context.Context, o PruneOptions) (rep PruneReport, err error) {
	rep.DryRun = true
	s, err := r.beginReading(ctx, "prune", logger(o.Logger))
	if err != nil {
		return rep, err
	}
	defer s.end()
	leases, err := r.store.List(ctx, leaseDir)
	if err != nil {
		return rep, err
	}
	for _, l := range leases {
		held, err := r.store.Held(ctx, l.Name)
		if err != nil {
			return rep, err
		}
		if held && l.Name != s.name {
			rep.Leases++
		}
	}
	u, err := r.lookAtUse(ctx)
	if err != nil {
		return rep, err
	}
	noted := make(map[format.ID]bool)
	if err := r.noteNeeded(ctx, noted); err != nil {
		return rep, err
	}
	for id, size := range u.sizes {
		if _, needed := u.packs[id]; needed || noted[id] {
			continue
		}
		if rep.Leases > 0 {
			rep.Waiting++
			continue
		}
		rep.Packs++
		rep.Bytes += size
	}
	most := o.MaxUnused
	if !o.Repack {
		most = 1
	}
	leave, unused := u.choose(most)
	rep.Unused, rep.Repacked = unused, len(leave)
	for id := range leave {
		rep.Moved += u.packs[id].bytes
	}
	return rep, nil
}
