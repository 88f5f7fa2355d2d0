package dmswap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/swapback/swapback/dmswap/dm"
)

// ScanOptions say where to look for pools.
type ScanOptions struct {
	// Disks are looked at when there are any; else all block devices of the
	// machine that can be members.
	Disks []string
	// SkipBad skips disks that were named and can't be found or read, as those
	// that were not.
	SkipBad bool
	// Sys and Dev are where sysfs and devtmpfs are mounted; /sys and /dev
	// unless set.
	Sys, Dev string
	Logger   *slog.Logger
}

// FoundPool is a pool whose labels were found. What Problems says keeps it from
// being opened; Open on its Disks returns the same as an error. One with members
// missing opens degraded.
type FoundPool struct {
	Name     string // "" when the label can't be read
	UUID     UUID
	Disks    []string // with a label of this pool, or metadata behind a damaged one
	Members  int      // how many disks it should have
	Missing  []int    // indexes of members that were not found
	Problems []string
}

// MissingText says which members were not found, or "".
func (f FoundPool) MissingText() string {
	if len(f.Missing) == 0 {
		return ""
	}
	return missingText(f.Missing, f.Members)
}

// Scan looks for labels of pools. It opens disks for reading only. A disk that
// can't be read is skipped with a message in the log, unless it was named.
func Scan(ctx context.Context, opt ScanOptions) ([]FoundPool, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	disks, named := opt.Disks, len(opt.Disks) > 0
	if !named {
		var err error
		if disks, err = candidates(orDefault(opt.Sys, "/sys"), orDefault(opt.Dev, "/dev")); err != nil {
			return nil, fmt.Errorf("looking for disks: %w", err)
		}
	}
	f := finder{}
	for _, path := range disks {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		l, err := scanDisk(path)
		switch {
		case err == nil:
			f.add(path, l)
		case errors.Is(err, errNoLabel):
		case errors.Is(err, errBadLabel), errors.Is(err, errNewer):
			f.list = append(f.list, &FoundPool{Disks: []string{path}, Problems: []string{labelError(path, err).Error()}})
		case named && !opt.SkipBad:
			return nil, fmt.Errorf("disk %s: %w", path, err)
		case named:
			opt.Logger.Warn("disk skipped", "disk", path, "err", err)
		default:
			opt.Logger.Debug("disk skipped", "disk", path, "err", err)
		}
	}
	return f.finish(), nil
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func scanDisk(path string) (label, error) {
	d, err := openBlockDevice(path, false, 0)
	if err != nil {
		return label{}, err
	}
	defer d.Close()
	if d.size < labelOffset+labelSize {
		return label{}, errNoLabel
	}
	l, err := readLabel(d)
	if errors.Is(err, errBadLabel) || errors.Is(err, errNoLabel) {
		if l, ok := recognise(d, d.size, 0); ok {
			return l, nil
		}
	}
	return l, err
}

// HasDevices tells whether device-mapper devices of a pool are in the kernel:
// the pool was open since the machine started.
func HasDevices(pool UUID) bool {
	c, err := dm.Open()
	if err != nil {
		return false
	}
	defer c.Close()
	list, err := c.List()
	return err == nil && slices.ContainsFunc(list, func(l dm.Listed) bool {
		return strings.HasPrefix(l.UUID, dmUUIDPrefix(pool))
	})
}

// finder groups labels by pool.
type finder struct {
	used  map[UUID]bool // a label says that the pool is in use
	list  []*FoundPool
	seen  map[UUID]*FoundPool
	index map[UUID]map[int]string
}

func (f *finder) add(path string, l label) {
	if f.seen == nil {
		f.seen, f.index, f.used = map[UUID]*FoundPool{}, map[UUID]map[int]string{}, map[UUID]bool{}
	}
	f.used[l.Pool] = f.used[l.Pool] || !l.Unfinished
	p := f.seen[l.Pool]
	if p == nil {
		p = &FoundPool{Name: l.PoolName, UUID: l.Pool, Members: l.Count}
		f.seen[l.Pool], f.index[l.Pool] = p, map[int]string{}
		f.list = append(f.list, p)
	}
	p.Disks = append(p.Disks, path)
	if other := f.index[l.Pool][l.Index]; other != "" {
		p.Problems = append(p.Problems, fmt.Sprintf("%s and %s both are member %d: one is a copy of the other", other, path, l.Index))
	}
	f.index[l.Pool][l.Index] = path
}

func (f *finder) finish() []FoundPool {
	var out []FoundPool
	for _, p := range f.list {
		if p.UUID != "" && !f.used[p.UUID] {
			continue // was being made, or deleted: there is nothing of it
		}
		for i := range p.Members {
			if f.index[p.UUID][i] == "" {
				p.Missing = append(p.Missing, i)
			}
		}
		out = append(out, *p)
	}
	slices.SortStableFunc(out, func(a, b FoundPool) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// candidates lists the nodes of block devices that can be members: disks and
// partitions, but not what swapback itself serves, and nothing without a
// medium. Opening a device of a dead ublk server, or a suspended one, would
// wait for ever.
func candidates(sys, dev string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(sys, "block"))
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		name := e.Name()
		dir := filepath.Join(sys, "block", name)
		if !canBeMember(name, dir) {
			continue
		}
		list = append(list, filepath.Join(dev, strings.ReplaceAll(name, "!", "/")))
		// Partitions are directories of the disk that have a file "partition".
		parts, err := filepath.Glob(filepath.Join(dir, "*", "partition"))
		if err != nil {
			return nil, err
		}
		for _, p := range parts {
			list = append(list, filepath.Join(dev, strings.ReplaceAll(filepath.Base(filepath.Dir(p)), "!", "/")))
		}
	}
	return list, nil
}

func canBeMember(name, dir string) bool {
	for _, prefix := range []string{"ublkb", "ram", "zram", "sr", "fd"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok && strings.Trim(rest, "0123456789") == "" {
			return false
		}
	}
	read := func(file string) string {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(text))
	}
	if size := read("size"); size == "" || size == "0" {
		return false
	}
	if strings.HasPrefix(name, "dm-") && (strings.HasPrefix(read("dm/uuid"), uuidPrefix) || read("dm/suspended") == "1") {
		return false
	}
	if strings.HasPrefix(name, "loop") {
		_, err := os.Stat(filepath.Join(dir, "loop", "backing_file"))
		return !errors.Is(err, fs.ErrNotExist)
	}
	return true
}
