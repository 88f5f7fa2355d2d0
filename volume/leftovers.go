package volume

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removeStaleFiles removes links and marks that a dead daemon left: it had made
// them for what was not recorded any more, or had not come to removing them. It
// is called when all volumes are served.
func (c *Controller) removeStaleFiles() {
	links, marks := map[string]bool{}, map[string]bool{}
	open := map[string]bool{}
	for _, p := range c.poolsSorted() {
		open[p.Info().Name] = true
		for _, v := range p.Volumes() {
			t := target{p, v}
			e := c.export(t)
			if e == nil {
				continue
			}
			// One that could not be served keeps its link: its device may be there.
			links[c.linkPath(t)] = true
			if e.dev != nil && v.Position.Quarantine != nil {
				marks[c.markPath(e.dev.ID())] = true
			}
		}
	}
	for _, path := range c.filesIn(c.opt.LinkDir, "*/*") {
		// Nothing is known of a pool that is not open, but that a link to
		// nothing is of no use.
		_, err := os.Stat(path)
		if links[path] || !open[filepath.Base(filepath.Dir(path))] && !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if _, err := os.Readlink(path); err != nil {
			continue // not ours
		}
		c.removeStale(path)
		_ = os.Remove(filepath.Dir(path)) // gone unless another link is in it
	}
	for _, path := range c.filesIn(c.opt.RunDir, "quarantine/ublkb*") {
		if !marks[path] && !locked(path) {
			c.removeStale(path)
		}
	}
	c.unlinkMapper()
}

// locked tells whether a mark belongs to another process that lives, as that of a
// backup which "swapback backup mount" serves: it has its mark locked.
func locked(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

func (c *Controller) filesIn(dir, pattern string) []string {
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		c.log.Warn("looking for what a dead daemon left", "dir", dir, "err", err)
	}
	return list
}

func (c *Controller) removeStale(path string) {
	c.log.Warn("removing what a dead daemon left", "path", path)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.log.Warn("not removed", "path", path, "err", err)
	}
}
