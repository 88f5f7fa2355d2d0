package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
)

// A backup that does not get to its end leaves packs, and the next one of the same
// volumes goes on from there: it finds their chunks stored already. What names
// these packs is a note under interrupted/, called as the session is. It is
// written when a backup is cancelled or loses its source, and every minute before
// that, for the backup that is killed.
//
// A note is a reference, as a manifest is: the packs that it names are needed, and
// whoever removes it keeps to the rules of gc.go. It goes when a later backup of
// the same volumes is complete, or with DropInterrupted. Unlike a manifest it
// promises nothing: a pack that it names may have gone, and what is in one is
// looked at before it is used, like everything that an earlier session wrote.
//
// Nobody goes on from the note of a session whose lease is held. Such a session
// may still fail and remove its packs.
const (
	interruptedDir = "interrupted"
	// noteEvery is how often a running backup writes its note.
	noteEvery = time.Minute
	// noteReaders is how many packs' directories are read at once.
	noteReaders = 16
)

// interrupted is the body of a note.
type interrupted struct {
	ID      string             `json:"id"` // of the session
	Created moment             `json:"created"`
	Volumes bounded[VolumeRef] `json:"volumes"`
	Packs   noted              `json:"packs"` // IDs of packs of chunks
}

// noting is what a backup that is under way knows of its note.
type noting struct {
	volumes []VolumeRef
	last    time.Time
	packs   int      // named by the note; 0 when there is none
	taken   []string // notes of earlier backups whose volumes all are in this one
}

func (c *creation) noteName() string { return interruptedDir + "/" + c.session.id.String() }

// note writes the note anew when there are packs that it does not name.
func (c *creation) note(ctx context.Context) error {
	packs := c.chunks.Durable()
	packs = packs[:min(len(packs), maxNoted)]
	if len(packs) == c.noting.packs {
		return nil
	}
	n := interrupted{ID: c.session.id.String(), Created: moment{c.r.now().UTC()}, Volumes: c.noting.volumes}
	for _, id := range packs {
		n.Packs = append(n.Packs, id.String())
	}
	if err := c.r.putSealedAs(ctx, store.Replace, c.noteName(), format.TextInterrupted, n); err != nil {
		return err
	}
	c.noting.packs = len(packs)
	return nil
}

// noteNow and then writes the note of a running backup.
func (c *creation) noteNow(ctx context.Context) {
	every := noteEvery
	if c.r.noteEvery != 0 {
		every = c.r.noteEvery
	}
	if time.Since(c.noting.last) < every {
		return
	}
	c.noting.last = time.Now()
	if err := c.note(ctx); err != nil && ctx.Err() == nil {
		// The backup itself needs no note.
		c.log.Warn("packs of the backup so far could not be noted; a crash would lose them", "err", err)
	}
}

// keep leaves the packs of a backup that ended with err to the next one, when it
// was neither the repository nor its room that failed.
func (c *creation) keep(ctx context.Context, err error) bool {
	ended := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrSource)
	if !ended || c.session.hold.Err() != nil {
		return false
	}
	if nerr := c.note(ctx); nerr != nil {
		c.log.Warn("packs of the interrupted backup could not be noted for the next one", "err", nerr)
		return false
	}
	if c.noting.packs == 0 {
		return false
	}
	c.log.Warn("backup was interrupted; the next one of the same volumes goes on from what is stored",
		"packs", c.noting.packs, "bytes", c.chunks.Bytes())
	return true
}

// settle removes what this backup made needless: its own note, and those that it
// went on from.
func (c *creation) settle(ctx context.Context) {
	names := slices.Clone(c.noting.taken)
	if c.noting.packs > 0 {
		names = append(names, c.noteName())
	}
	if err := c.r.removeNotes(ctx, names); err != nil {
		c.log.Warn("notes of interrupted backups are left; prune removes them", "err", err)
	}
}

func (r *Repository) removeNotes(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := r.removeManifest(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// notes returns the names of all notes.
func (r *Repository) notes(ctx context.Context) ([]string, error) {
	infos, err := r.store.List(ctx, interruptedDir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range infos {
		if _, err := format.ParseID(strings.TrimPrefix(i.Name, interruptedDir+"/")); err == nil {
			names = append(names, i.Name)
		}
	}
	return names, nil
}

// noteHeld tells whether the session that wrote a note is still there.
func (r *Repository) noteHeld(ctx context.Context, name string) (bool, error) {
	return r.store.Held(ctx, leaseDir+strings.TrimPrefix(name, interruptedDir))
}

func (r *Repository) readNote(ctx context.Context, name string) (n interrupted, packs []format.ID, err error) {
	body, err := readText(ctx, r.store, name)
	if err == nil {
		err = r.decodeSealed(body, format.TextInterrupted, name, &n)
	}
	for _, text := range n.Packs {
		id, perr := format.ParseID(text)
		if perr != nil && err == nil {
			err = perr
		}
		packs = append(packs, id)
	}
	if err != nil {
		return n, nil, fmt.Errorf("%s: %w", name, err)
	}
	return n, packs, nil
}

// noteNeeded adds the packs that notes name.
func (r *Repository) noteNeeded(ctx context.Context, needed map[format.ID]bool) error {
	names, err := r.notes(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		_, packs, err := r.readNote(ctx, name)
		if err != nil {
			return err
		}
		for _, id := range packs {
			needed[id] = true
		}
	}
	return nil
}

// takeUp remembers the chunks that interrupted backups left, and which of their
// notes the backup of these volumes makes needless. It must run within the session.
func (c *creation) takeUp(ctx context.Context, sources []Source) error {
	for _, s := range sources {
		c.noting.volumes = append(c.noting.volumes, s.Volume)
	}
	c.noting.last = time.Now()
	if c.o.Reuse == ReuseNone {
		return nil
	}
	names, err := c.r.notes(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if held, err := c.r.noteHeld(ctx, name); err != nil {
			return err
		} else if held {
			continue
		}
		n, packs, err := c.r.readNote(ctx, name)
		switch {
		case errors.Is(err, store.ErrNotExist):
			continue // somebody else has gone on from it meanwhile
		case unreadable(err):
			c.log.Warn("note of an interrupted backup can't be used", "err", err)
			continue
		case err != nil:
			return err
		}
		if err := c.reuse.takeUp(ctx, packs); err != nil {
			return err
		}
		if !slices.ContainsFunc(n.Volumes, func(v VolumeRef) bool {
			return !slices.ContainsFunc(sources, func(s Source) bool { return sameVolume(v, s.Volume) })
		}) {
			c.noting.taken = append(c.noting.taken, name)
		}
	}
	return nil
}

// sameVolume tells whether two images are of one volume.
func sameVolume(a, b VolumeRef) bool { return a.UUID != "" && a.UUID == b.UUID || a.name() == b.name() }

// takeUp remembers what packs list. One that is damaged or has gone is passed over.
func (u *reuse) takeUp(ctx context.Context, packs []format.ID) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(noteReaders)
	var mu sync.Mutex // of u.known: nobody else uses it yet
	for _, id := range packs {
		g.Go(func() error {
			var refs []format.Ref
			_, err := pack.ReadDirectory(ctx, u.store, id, func(n int, ref format.Ref) { refs = append(refs, ref) })
			if unreadable(err) || errors.Is(err, store.ErrNotExist) {
				u.log.Warn("pack of an interrupted backup can't be used", "err", err)
				return nil
			}
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, ref := range refs {
				if err := u.remember(ref); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); !errors.Is(err, errEnough) {
		return err
	}
	return nil
}

// DropInterrupted removes what backups that were interrupted at least so long ago
// left for the next one to go on from, and returns how many there were. Their packs are garbage then, as far as no backup has come to need
// them. Backups that are running are passed over.
func (r *Repository) DropInterrupted(ctx context.Context, age time.Duration) (dropped int, err error) {
	op := "drop interrupted backups in " + r.Location()
	names, err := r.notes(ctx)
	if err != nil {
		return 0, wrap(op, err)
	}
	for _, name := range names {
		if held, err := r.noteHeld(ctx, name); err != nil {
			return dropped, wrap(op, err)
		} else if held {
			continue
		}
		n, _, err := r.readNote(ctx, name)
		if errors.Is(err, store.ErrNotExist) || err == nil && r.now().Sub(n.Created.Time) < age {
			continue
		}
		// A damaged one is of no use, and in the way of every removal.
		if err != nil && !pack.IsDamage(err) {
			return dropped, wrap(op, err)
		}
		if err := r.removeManifest(ctx, name); err != nil {
			return dropped, wrap(op, err)
		}
		dropped++
	}
	return dropped, nil
}
