package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/holders"
)

// sourceSpace is where the UUIDs of sources come from, which are made of their names:
// a source is the same as another one when it has the same name.
var sourceSpace = uuid.MustParse("5f6ff3a1-3d0c-4d0e-9b54-9d3c0f3a5a0b")

// parseSources reads the values of --source, NAME=PATH each.
func parseSources(values []string) ([]backup.Source, error) {
	var list []backup.Source
	for _, value := range values {
		name, path, found := strings.Cut(value, "=")
		if !found || name == "" || path == "" {
			return nil, usagef("--source %q: it is not NAME=PATH", value).
				withRemedy("such as --source root=/dev/vdb or --source disk=/srv/vm/disk.img")
		}
		id := uuid.NewSHA1(sourceSpace, []byte(name)).String()
		list = append(list, backup.Source{Path: path, Volume: backup.VolumeRef{Name: name, UUID: id}})
	}
	return list, nil
}

// backupSources backs up devices and files that no daemon serves.
func (a *app) backupSources(ctx context.Context, repo *backup.Repository, o backupCreateOptions, p *progress) (backup.Backup, error) {
	sources, err := parseSources(o.sources)
	if err != nil {
		return backup.Backup{}, err
	}
	if o.changes != "" {
		if len(sources) != 1 {
			return backup.Backup{}, usagef("--changes: %d sources", len(sources)).withRemedy("give one --source, whose changes they are")
		}
		if sources[0].Changes, err = a.readChanges(ctx, repo, o.changes); err != nil {
			return backup.Backup{}, err
		}
	}
	if !o.allowInUse {
		for _, s := range sources {
			if err := checkUnused(ctx, s.Path); err != nil {
				return backup.Backup{}, err
			}
		}
	}
	return repo.Create(ctx, sources, backup.CreateOptions{
		Comment: o.comment, Tags: o.tags, Limit: int64(o.limit), FullSpeed: o.noThrottle,
		Progress: p.update, Logger: a.logger(),
	})
}

// changesFile is what --changes reads: which bytes may differ from what a backup
// holds, as a hypervisor's dirty bitmap or a storage system tells it.
type changesFile struct {
	Base   string         `json:"base"` // as backups are named
	Ranges []backup.Range `json:"ranges"`
}

// maxChangesFile bounds the file: 10 million ranges or so.
const maxChangesFile = 512 << 20

func (a *app) readChanges(ctx context.Context, repo *backup.Repository, path string) (*backup.Changes, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usagef("--changes: %v", err)
	}
	defer f.Close()
	var c changesFile
	dec := json.NewDecoder(io.LimitReader(f, maxChangesFile))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil || c.Base == "" {
		return nil, usagef("--changes %s: it is not {\"base\": BACKUP, \"ranges\": [{\"offset\": BYTES, \"length\": BYTES}]}: %v", path, cmp.Or(err, errors.New("no base")))
	}
	b, err := a.findBackup(ctx, repo, c.Base)
	if err != nil {
		return nil, err
	}
	return &backup.Changes{Base: b.ID, Ranges: c.Ranges}, nil
}

// checkUnused refuses what may change while it is read: there is no snapshot
// that keeps it still. What is not there is the engine's to complain about.
func checkUnused(ctx context.Context, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return nil
	}
	switch {
	case st.Mode().IsRegular():
		return checkNoWriter(path)
	case st.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice:
		return checkNoHolder(ctx, path)
	}
	return nil
}

const inUseRemedy = "back up a snapshot of it, or end its use; --allow-in-use takes it as it is, which may be no state that it ever was in"

func checkNoHolder(ctx context.Context, path string) error {
	f := holders.Finder{Ignore: []int{os.Getpid()}, Probe: true}
	found, err := f.Find(ctx, path)
	if len(found) > 0 {
		e := &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("back up %s: it is in use: %v", path, found[0]), Remedy: inUseRemedy}
		if n := len(found) - 1; n > 0 {
			e.Message += fmt.Sprintf(", and %d more", n)
		}
		for _, h := range found {
			e.Holders = append(e.Holders, api.Holder{Kind: h.Kind, Device: h.Device, PID: h.PID, Command: h.Command, Detail: h.Detail})
		}
		return e
	}
	if err != nil {
		return &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("back up %s: whether it is in use can't be told: %v", path, err), Remedy: inUseRemedy}
	}
	return nil
}

// checkNoWriter asks the kernel for a lease of the file, which it does not give
// while somebody has it open for writing, and hands it back at once. Where there
// are no leases nobody can tell.
func checkNoWriter(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return nil // as above
	}
	defer f.Close()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	if errors.Is(err, unix.EAGAIN) {
		return &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("back up %s: somebody has it open for writing", path), Remedy: inUseRemedy}
	}
	return nil
}
