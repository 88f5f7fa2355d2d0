package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
)

// How packs are removed safely beside running operations, without clocks.
//
// What is said of manifests holds for the notes of interrupted.go too.
//
// Every operation holds a lease from before it reads the first manifest until
// after it wrote its own or read the last pack. A pack is needed by the backups
// whose tables name it, and by operations that saw such a backup before it was
// deleted, or that wrote the pack and have not written their manifest yet. So:
//
//  1. Under the lock, list packs, then leases, then manifests, in this order. An
//     operation that ended between the second and the third step has its
//     manifest in the list; one that began after the second step can't have
//     written a pack of the first, nor seen a manifest that was gone by then.
//  2. What no manifest names is garbage if no lease is held: remove it.
//  3. Otherwise note the garbage and the leases in gc/pending. Once none of these
//     leases is held, what is still garbage then can go, whoever else has begun
//     in between.
//
// That an operation that began later can't need noted garbage holds only while
// no manifest that names it comes and goes unseen. Therefore whoever removes a
// manifest throws the note away first, under the lock. Exchanging a manifest, see
// moving, is removing one and making another.
const (
	gcLock      = "locks/gc"
	pendingName = "gc/pending"
)

// gcHold is the lock while it is held. In a bucket it can be lost, to somebody who
// then decides what goes: so whoever has it asks before each step that can't be
// taken back.
type gcHold struct{ hold store.Hold }

func (r *Repository) lock(ctx context.Context) (*gcHold, error) {
	h, err := r.store.Lock(ctx, gcLock)
	if err != nil {
		return nil, err
	}
	return &gcHold{h}, nil
}

func (l *gcHold) release() { _ = l.hold.Release() } // else it ends with the process, or by itself

func (l *gcHold) check() error {
	if err := l.hold.Err(); err != nil {
		return fmt.Errorf("the lock of removals is lost: %w", err)
	}
	return nil
}

// pending is the note of step 3.
type pending struct {
	Packs  noted `json:"packs"`
	Leases noted `json:"leases"`
}

// Delete removes backups and the packs that nothing else needs, and returns the
// IDs of those that are gone, also with an error. An ID may be shortened, or be
// "latest". Packs that a running operation may need are left for the next Delete or
// Prune. A damaged backup can be deleted as well.
//
// When the backups are deleted but another one's table can't be read, no pack is
// removed and the error says so.
func (r *Repository) Delete(ctx context.Context, ids ...string) (deleted []string, rep PruneReport, err error) {
	op := fmt.Sprintf("delete %s from %s", quoted(ids), r.Location())
	var full []string
	for _, id := range ids {
		var one string
		if id == "latest" {
			b, err := r.Get(ctx, id)
			if err != nil {
				return nil, rep, err
			}
			one = b.ID
		} else if one, err = r.resolve(ctx, op, id); err != nil {
			return nil, rep, err
		}
		if !slices.Contains(full, one) {
			full = append(full, one)
		}
	}
	lock, err := r.lock(ctx)
	if err != nil {
		return nil, rep, wrap(op, err)
	}
	defer lock.release()
	// What waits from earlier may go now; after this the note is not valid.
	// Failing here, on a damaged backup for instance, must not keep anybody
	// from deleting that very backup.
	if err := r.sweepPending(ctx, lock, &rep); err != nil && !unreadable(err) {
		return nil, rep, wrap(op, err)
	}
	for _, id := range full {
		if err := r.removeManifestLocked(ctx, lock, backupDir+"/"+id); err != nil {
			return deleted, rep, wrap(op, err)
		}
		deleted = append(deleted, id)
	}
	if err := r.sweep(ctx, lock, &rep); err != nil {
		what := "backup " + some(deleted) + " is deleted; free its space"
		if len(deleted) > 1 {
			what = "backups " + some(deleted) + " are deleted; free their space"
		}
		return deleted, rep, r.kept(what, err)
	}
	return deleted, rep, nil
}

func quoted(ids []string) string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = fmt.Sprintf("%q", id)
	}
	return "backup " + some(texts)
}

// removeManifest removes a manifest or a note, and no pack.
func (r *Repository) removeManifest(ctx context.Context, name string) error {
	lock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.release()
	return r.removeManifestLocked(ctx, lock, name)
}

// removeManifestLocked is the only one to remove manifests and notes.
func (r *Repository) removeManifestLocked(ctx context.Context, lock *gcHold, name string) error {
	if err := lock.check(); err != nil {
		return err
	}
	if err := r.store.Delete(ctx, pendingName); err != nil {
		return err
	}
	return r.store.Delete(ctx, name)
}

func unreadable(err error) bool { return pack.IsDamage(err) || errors.Is(err, format.ErrVersion) }

// kept is the error of a removal that can't know what is needed.
func (r *Repository) kept(op string, err error) error {
	if unreadable(err) {
		return &Error{Kind: ErrDamaged, Op: op, Err: err, Detail: "no pack is removed while a backup's table can't be read",
			Remedy: "see what is affected with: swapback backup verify --all; put back what can be had from elsewhere with: swapback repo heal; then delete the backups that stay damaged"}
	}
	return wrap(op, err)
}

// state is what step 1 finds.
type state struct {
	garbage []store.Info
	leases  []string // that are held
}

func (r *Repository) look(ctx context.Context) (st state, err error) {
	packs, err := r.store.List(ctx, pack.Dir)
	if err != nil {
		return st, err
	}
	leases, err := r.store.List(ctx, leaseDir)
	if err != nil {
		return st, err
	}
	var dead []string
	for _, l := range leases {
		held, err := r.store.Held(ctx, l.Name)
		if err != nil {
			return st, err
		}
		if held {
			st.leases = append(st.leases, l.Name)
		} else {
			dead = append(dead, l.Name)
		}
	}
	if err := r.store.Delete(ctx, dead...); err != nil {
		return st, err
	}
	needed, err := r.neededPacks(ctx)
	if err != nil {
		return st, err
	}
	for _, p := range packs {
		// An object that is no pack's is not ours to remove.
		id, err := format.ParseID(p.Name[strings.LastIndexByte(p.Name, '/')+1:])
		if err == nil && pack.Name(id) == p.Name && !needed[id] {
			st.garbage = append(st.garbage, p)
		}
	}
	return st, nil
}

// neededPacks returns the packs that the tables of all backups and the notes of
// interrupted ones name. It fails when it can't read every one of them.
func (r *Repository) neededPacks(ctx context.Context) (map[format.ID]bool, error) {
	ids, err := r.ids(ctx)
	if err != nil {
		return nil, err
	}
	t, err := r.newTables(ctx)
	if err != nil {
		return nil, err
	}
	defer t.close()
	t.chunks = nil // there may be very many
	needed := make(map[format.ID]bool)
	need := func(_ int64, ref format.Ref) error {
		needed[ref.Pack] = true
		return nil
	}
	for _, id := range ids {
		b, err := r.readManifest(ctx, id)
		if err != nil {
			return nil, err // also when it is gone: nobody else may delete now
		}
		for _, v := range b.Volumes {
			if err := t.volume(b, v, seen{chunk: need, node: need}); err != nil {
				return nil, err
			}
		}
	}
	return needed, r.noteNeeded(ctx, needed)
}

// sweepPending removes noted garbage whose leases have all ended.
func (r *Repository) sweepPending(ctx context.Context, lock *gcHold, rep *PruneReport) error {
	var note pending
	body, err := readText(ctx, r.store, pendingName)
	if err == nil {
		err = format.DecodeText(body, format.TextPending, &note)
	}
	if unreadable(err) {
		return nil // no note, or none that can be used: the garbage waits longer
	}
	if err != nil {
		return err
	}
	st, err := r.look(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(st.leases, func(l string) bool { return slices.Contains(note.Leases, l) }) {
		return nil
	}
	in := make(map[string]bool, len(note.Packs))
	for _, p := range note.Packs {
		in[p] = true
	}
	st.garbage = slices.DeleteFunc(st.garbage, func(p store.Info) bool { return !in[p.Name] })
	if err := r.remove(ctx, lock, st.garbage, rep); err != nil {
		return err
	}
	return r.store.Delete(ctx, pendingName)
}

// sweep removes garbage, or notes it when somebody may need it.
func (r *Repository) sweep(ctx context.Context, lock *gcHold, rep *PruneReport) error {
	freed, err := r.store.Clean(ctx)
	if err != nil {
		return err
	}
	rep.Bytes += freed
	st, err := r.look(ctx)
	if err != nil {
		return err
	}
	rep.Leases = len(st.leases)
	if len(st.leases) == 0 {
		if err := r.remove(ctx, lock, st.garbage, rep); err != nil {
			return err
		}
		return r.store.Delete(ctx, pendingName)
	}
	rep.Waiting = len(st.garbage)
	if len(st.garbage) == 0 {
		return nil
	}
	// A note that is there still waits for its own leases. Replacing it would
	// make its packs wait for later ones too; what is new is noted next time.
	if _, err := r.store.Size(ctx, pendingName); err == nil {
		return nil
	}
	note := pending{Leases: st.leases}
	for _, p := range st.garbage[:min(len(st.garbage), maxNoted)] {
		note.Packs = append(note.Packs, p.Name)
	}
	return putText(ctx, r.store, pendingName, store.Replace, format.TextPending, note)
}

func (r *Repository) remove(ctx context.Context, lock *gcHold, garbage []store.Info, rep *PruneReport) error {
	const step = 64 // so that the report is about right when one fails
	for part := range slices.Chunk(garbage, step) {
		names := make([]string, len(part))
		for i, p := range part {
			names[i] = p.Name
		}
		if err := lock.check(); err != nil {
			return err
		}
		if err := r.store.Delete(ctx, names...); err != nil {
			return err
		}
		for _, p := range part {
			rep.Packs++
			rep.Bytes += p.Size
		}
	}
	return nil
}
