package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/volume/changes"
)

// The change maps belong to positions, so a swap moves them. Their fine halves lie
// in the run directory:
//
//	changes/POOL/session       the session of the pool's maps and the boot of the machine
//	changes/POOL/POSITION.map  see package changes
const (
	changesDir  = "changes"
	sessionFile = "session"
	mapEnding   = ".map"
)

func (c *Controller) changesPath(pool string, name ...string) string {
	return filepath.Join(append([]string{c.opt.RunDir, changesDir, pool}, name...)...)
}

// track begins to keep the change maps of a pool that was just opened.
func (c *Controller) track(p *dmswap.Pool) {
	pool := p.Info().UUID
	boot, err := bootID()
	session := ""
	if err == nil && c.inMemory {
		session, err = readSession(c.changesPath(pool, sessionFile), boot)
	}
	if err != nil {
		c.log.Warn("change maps of an earlier daemon not looked for", "pool", p.Info().Name, "err", err)
	}
	begin := func() error { return os.RemoveAll(c.changesPath(pool)) }
	now, err := p.Track(session, begin)
	if err != nil {
		c.log.Error("change maps are not kept: backups are full", "pool", p.Info().Name, "err", err)
		if errors.Is(err, dmswap.ErrDamaged) {
			c.mu.Lock()
			c.untracked[pool] = err
			c.mu.Unlock()
		}
		return
	}
	dir := c.changesPath(pool)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.log.Warn("no directory for fine change maps", "err", err)
	}
	c.forgetStrange(p)
	if now == session || boot == "" || !c.inMemory {
		return
	}
	// Without it the next daemon does not trust what lies beside it.
	if err := writeFile(filepath.Join(dir, sessionFile), now+" "+boot+"\n"); err != nil {
		c.log.Warn("session of the change maps not noted", "err", err)
	}
}

// forgetStrange removes maps of positions that are gone: a daemon died before it
// came to that.
func (c *Controller) forgetStrange(p *dmswap.Pool) {
	known := map[string]bool{}
	for _, v := range p.Volumes() {
		known[v.Position.ID+mapEnding] = true
	}
	for _, path := range c.filesIn(c.changesPath(p.Info().UUID), "*"+mapEnding+"*") {
		if !known[filepath.Base(path)] {
			c.removeStale(path)
		}
	}
}

// bootID tells one life of the machine from another (random(4)).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// readSession returns "" when there is none, or it is of an earlier life of the
// machine.
func readSession(path, boot string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	session, rest, _ := strings.Cut(strings.TrimSuffix(string(text), "\n"), " ")
	if id, err := uuid.Parse(session); err != nil || id.String() != session {
		return "", fmt.Errorf("%s names no session", path)
	}
	if rest != boot {
		return "", nil
	}
	return session, nil
}

func writeFile(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// inMemory tells whether a directory is one of memory. A page of a file on a disk
// is written back now and then, and who writes to it meanwhile waits for the disk,
// which may be a volume of ours.
func inMemory(dir string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	return err == nil && (st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC)
}

// fineFile is where the fine half of a position's map is kept, or "".
func (c *Controller) fineFile(pool, position string) string {
	if !c.inMemory {
		return ""
	}
	return c.changesPath(pool, position+mapEnding)
}

// changesOf returns the change map of the position behind a volume, and opens it
// if that has not been done. The caller has claimed the volume.
func (c *Controller) changesOf(t target) (*changes.Map, error) {
	id, pool := t.info.Position.ID, t.pool.Info().UUID
	c.mu.Lock()
	have, untracked := c.changes[id], c.untracked[pool]
	c.mu.Unlock()
	if have != nil {
		return have, nil
	}
	now, err := t.pool.Volume(t.uuid()) // its base may have been dropped
	if err != nil {
		return nil, fromPool(fmt.Sprintf("volume %s", t), err)
	}
	if untracked != nil && now.Position.Base.Backup != "" {
		return nil, fmt.Errorf("volume %s: %w", t, untracked)
	}
	durable, session, err := coverageOf(t.pool, id)
	if err != nil {
		return nil, fromPool(fmt.Sprintf("volume %s", t), err)
	}
	m, err := changes.Open(changes.Options{
		Pool: pool, Position: id, Size: now.Size, Durable: durable, Session: session,
		File: c.fineFile(pool, id), Base: now.Position.Base,
		GiveUp: func(why string) error { return t.pool.DropBases(why, id) },
		Logger: c.log.With("position", id),
	})
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", t, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes[id] = m
	return m, nil
}

// coverageOf is [dmswap.Pool.Coverage] as an interface that can be nil.
func coverageOf(p *dmswap.Pool, position string) (changes.Durable, string, error) {
	coverage, err := p.Coverage(position)
	if err != nil || coverage == nil {
		return nil, "", err
	}
	return coverage, p.Session(), nil
}

// mapOf returns the change map of a position, or nil when it has not been opened.
func (c *Controller) mapOf(position string) *changes.Map {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changes[position]
}

// forgetChanges is for a position that is gone.
func (c *Controller) forgetChanges(t target) {
	c.mu.Lock()
	delete(c.changes, t.info.Position.ID)
	c.mu.Unlock()
	path := c.changesPath(t.pool.Info().UUID, t.info.Position.ID+mapEnding)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.log.Warn("change map of a position that is gone not removed", "err", err)
	}
}

// moveChanges gives the devices of swapped volumes the change maps of the
// positions that they show now. The gates are closed, and the maps are there
// (see swap.exchange).
func (c *Controller) moveChanges(targets []target) {
	for i := 0; i < len(targets); i += 2 {
		a, b := targets[i], targets[i+1]
		a.info.Position, b.info.Position = b.info.Position, a.info.Position
		for _, t := range []target{a, b} {
			c.doorsOf(t).record(c.mapOf(t.info.Position.ID))
		}
	}
}

// growChanges makes room in the change map of a volume that has grown. Its I/O is held
// for the moment in which no mark may go to the old map.
func (c *Controller) growChanges(ctx context.Context, t target) error {
	have := c.mapOf(t.info.Position.ID)
	if have == nil {
		return nil
	}
	durable, _, err := coverageOf(t.pool, t.info.Position.ID)
	if err != nil {
		return fromPool(fmt.Sprintf("volume %s", t), err)
	}
	doors := c.doorsOf(t)
	doors.hold()
	defer doors.release()
	if err := doors.drain(ctx); err != nil {
		return err
	}
	grown, err := have.Grow(t.info.Size, durable)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.changes[t.info.Position.ID] = grown
	c.mu.Unlock()
	doors.record(grown)
	return nil
}

// describeChanges tells of the change map of a position that is served.
func (c *Controller) describeChanges(position string) *api.Changed {
	m := c.mapOf(position)
	if m == nil {
		return nil
	}
	info := m.Info()
	return &api.Changed{
		Since: info.Since, Bytes: info.Bytes, BlockSize: changes.Block,
		Base: info.Base.Backup, Why: info.Base.Why, Durable: info.Durable,
	}
}
