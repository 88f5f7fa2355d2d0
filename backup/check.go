package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
)

// Finding is something that a check says of an object.
type Finding struct {
	Object string `json:"object"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// CheckReport is the outcome of a check.
type CheckReport struct {
	Backups int   `json:"backups"` // that can be read
	Nodes   int64 `json:"nodes"`   // of their tables, all read
	Chunks  int64 `json:"chunks"`  // that the tables name and packs list; none is read
	Packs   int   `json:"packs"`
	Keys    int   `json:"keys"`
	// Operations are running now.
	Operations int `json:"operations"`
	// Unused are packs that no backup needs.
	Unused      int   `json:"unused"`
	UnusedBytes int64 `json:"unused_bytes"`
	// Problems are what is wrong. Notes are what is left over from operations
	// that ended early, or is not the repository's: no harm is in it.
	Problems []Finding `json:"problems"`
	Notes    []Finding `json:"notes"`
	Seconds  float64   `json:"seconds"`
}

// maxFindings bounds each list of a report.
const maxFindings = 1000

// checking is a check under way.
type checking struct {
	r   *Repository
	mu  sync.Mutex
	rep *CheckReport
}

// Check looks at every object: whether it belongs where it is and is whole, as far
// as that can be seen without reading data, which is what [Repository.Verify] does;
// and whether the tables of all backups and the directories of the packs that they
// name fit together. It changes nothing. What is wrong is in the report, and the
// error is of a check that could not be made.
func (r *Repository) Check(ctx context.Context) (rep CheckReport, err error) {
	op := "check " + r.Location()
	start := r.now()
	rep = CheckReport{Problems: []Finding{}, Notes: []Finding{}}
	s, err := r.beginReading(ctx, "check", logger(nil))
	if err != nil {
		return rep, wrap(op, err)
	}
	defer s.end()
	c := &checking{r: r, rep: &rep}
	for _, step := range []func(context.Context) error{c.foreign, c.keys, c.leases} {
		if err := step(ctx); err != nil {
			return rep, wrap(op, err)
		}
	}
	// Packs before manifests: one that is written meanwhile is not taken for
	// unused.
	packs, err := r.store.List(ctx, pack.Dir)
	if err != nil {
		return rep, wrap(op, err)
	}
	needed, err := c.backups(ctx)
	if err != nil {
		return rep, wrap(op, err)
	}
	kept := make(map[format.ID]bool) // for the next run of an interrupted backup
	if err := r.noteNeeded(ctx, kept); unreadable(err) {
		c.note(interruptedDir, err.Error(), "remove it with: swapback repo prune")
	} else if err != nil {
		return rep, wrap(op, err)
	}
	var unneeded []format.ID
	for _, p := range packs {
		id, ok := packID(p.Name)
		switch {
		case !ok:
			c.note(p.Name, "no pack has such a name; it is left alone", "")
			continue
		case !needed[id]:
			if !kept[id] {
				rep.Unused++
				rep.UnusedBytes += p.Size
			}
			unneeded = append(unneeded, id)
		}
		rep.Packs++
	}
	if err := c.packs(ctx, needed, unneeded); err != nil {
		return rep, wrap(op, err)
	}
	if rep.Unused > 0 && rep.Operations == 0 {
		c.note(pack.Dir, fmt.Sprintf("%d packs with %d bytes are needed by no backup", rep.Unused, rep.UnusedBytes), "remove them with: swapback repo prune")
	}
	rep.Seconds = r.now().Sub(start).Seconds()
	return rep, nil
}

func (c *checking) problem(object, detail, remedy string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	add(&c.rep.Problems, Finding{object, detail, remedy})
}

func (c *checking) note(object, detail, remedy string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	add(&c.rep.Notes, Finding{object, detail, remedy})
}

func add(list *[]Finding, f Finding) {
	switch n := len(*list); {
	case n < maxFindings:
		*list = append(*list, f)
	case n == maxFindings:
		*list = append(*list, Finding{Object: "…", Detail: "and more of the kind"})
	}
}

// foreign looks for what does not belong into a repository.
func (c *checking) foreign(ctx context.Context) error {
	names, err := c.r.store.Foreign(ctx)
	if err != nil {
		return err
	}
	own := []string{configName, pack.Dir, backupDir, leaseDir, keyDir, interruptedDir, "gc", "locks"}
	for _, name := range names {
		if first, _, _ := strings.Cut(name, "/"); !slices.Contains(own, first) {
			c.note(name, "it is not the repository's; it is left alone", "")
		}
	}
	return nil
}

func (c *checking) keys(ctx context.Context) error {
	if c.r.master == nil {
		return nil
	}
	keys, err := c.r.Keys(ctx)
	for _, k := range keys {
		if c.rep.Keys++; k.Damaged != "" {
			c.problem(keyDir+"/"+k.ID, k.Damaged, "remove it with: swapback repo key remove "+k.ID)
		}
	}
	return err
}

// leases looks at who is there, and at what those left who are not.
func (c *checking) leases(ctx context.Context) error {
	infos, err := c.r.store.List(ctx, leaseDir)
	if err != nil {
		return err
	}
	for _, i := range infos {
		held, err := c.r.store.Held(ctx, i.Name)
		switch {
		case err != nil:
			return err
		case held:
			c.rep.Operations++
		default:
			c.note(i.Name, "it was left by an operation that ended early", "repo prune removes it")
		}
	}
	c.rep.Operations-- // the check's own
	return c.pending(ctx)
}

func (c *checking) pending(ctx context.Context) error {
	var note pending
	body, err := readText(ctx, c.r.store, pendingName)
	if err == nil {
		err = format.DecodeText(body, format.TextPending, &note)
	}
	switch {
	case err == nil:
		c.note(pendingName, fmt.Sprintf("%d packs wait for %d operations to end", len(note.Packs), len(note.Leases)), "the next prune after that removes them")
	case unreadable(err) && !errors.Is(err, store.ErrNotExist):
		c.note(pendingName, err.Error(), "the next prune makes it anew")
	case !errors.Is(err, store.ErrNotExist):
		return err
	}
	return nil
}

// backups looks at manifests and tables and returns the packs that are needed.
func (c *checking) backups(ctx context.Context) (map[format.ID]bool, error) {
	infos, err := c.r.store.List(ctx, backupDir)
	if err != nil {
		return nil, err
	}
	for _, i := range infos {
		if !validID(strings.TrimPrefix(i.Name, backupDir+"/")) {
			c.note(i.Name, "no backup has such a name; it is left alone", "")
		}
	}
	var v VerifyReport
	vf, err := c.r.verify(ctx, VerifyOptions{StructureOnly: true}, &v, nil)
	if err != nil {
		return nil, err
	}
	c.rep.Backups, c.rep.Nodes, c.rep.Chunks = v.Backups, v.Nodes, v.Chunks
	for _, d := range v.Damage {
		for _, bad := range d.Ranges {
			c.problem(bad.Object, fmt.Sprintf("bytes %d-%d of volume %s of backup %s: %s", bad.Offset, bad.Offset+bad.Length-1, d.Volume, d.Backup, bad.Reason), healRemedy)
		}
	}
	for _, f := range vf.objects {
		f.Remedy = healRemedy
		if id, is := strings.CutPrefix(f.Object, backupDir+"/"); is {
			f.Remedy = "copy it back from another copy of the repository, or delete it with: swapback backup delete " + id
		}
		c.problem(f.Object, f.Detail, f.Remedy)
	}
	needed := make(map[format.ID]bool)
	for p := range vf.seen {
		needed[p.pack] = true
	}
	return needed, nil
}

const healRemedy = "put back what can be had from elsewhere with: swapback repo heal"

// packs looks at the packs that no table led to. What is needed has been looked at.
func (c *checking) packs(ctx context.Context, needed map[format.ID]bool, unneeded []format.ID) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxParallel)
	look := func(id format.ID) error {
		h, err := pack.ReadHeader(ctx, c.r.store, id)
		if err == nil && h.Repository != c.r.id {
			err = fmt.Errorf("%w: it is of repository %v", format.ErrCorrupt, h.Repository)
		}
		switch {
		case errors.Is(err, store.ErrNotExist):
			// Gone since, or needed and missing, which its table told.
		case unreadable(err) && needed[id]:
			c.problem(pack.Name(id), err.Error(), healRemedy)
		case unreadable(err):
			c.note(pack.Name(id), err.Error(), "no backup needs it; repo prune removes it")
		default:
			return err
		}
		return nil
	}
	for id := range needed {
		g.Go(func() error { return look(id) })
	}
	for _, id := range unneeded {
		g.Go(func() error { return look(id) })
	}
	return g.Wait()
}
