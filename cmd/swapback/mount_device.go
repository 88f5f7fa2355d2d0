package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/ublk"
)

// mountTag marks the ublk devices that show backups. The daemon's have another
// beginning, so it takes none of these for one of its own.
const mountTag = 0x534d<<48 | 1

const (
	// mountDepth and mountRequest bound the memory of a device: a buffer of
	// mountRequest bytes for each of mountDepth requests of at most 4 queues.
	mountDepth   = 32
	mountRequest = 256 << 10
	// maxMountNumber bounds the search for a free number.
	maxMountNumber = 1 << 16
)

// imageDevice is a block device that shows an image. It ends with the process:
// the kernel keeps it for no successor, and who has it open then gets EIO.
type imageDevice struct {
	image   *backup.Image
	dev     *ublk.Device
	backend *ublk.Backend
	mark    *deviceMark
}

// deviceMark is the mark by which the udev rules keep off a device. It is locked
// while its owner lives, by which others know that it was not left over.
type deviceMark struct {
	file *os.File
	path string
}

// imageHandler answers requests from memory at once, and others when their chunk
// was fetched: a slow repository keeps nobody waiting but those who want what is
// not there yet.
type imageHandler struct{ image *backup.Image }

func (h imageHandler) Begin(r *ublk.AsyncRequest) (later bool, e unix.Errno) {
	switch r.Op {
	case ublk.OpRead:
	case ublk.OpFlush:
		return false, 0
	default:
		return false, unix.EROFS
	}
	if h.image.TryReadAt(r.Data, int64(r.Offset)) {
		return false, 0
	}
	go func() { r.Answer(h.read(r.Data, int64(r.Offset))) }()
	return true, 0
}

func (h imageHandler) read(p []byte, off int64) unix.Errno {
	// It ends with the image, whose Close ends the reads of it.
	n, err := h.image.ReadAt(context.Background(), p, off)
	if errors.Is(err, io.EOF) { // the volume was no whole number of sectors
		clear(p[n:])
		return 0
	}
	if err != nil {
		return unix.EIO
	}
	return 0
}

// imageLimits are what a device of the image tells its clients. Requests do not
// reach across chunks, so that one which is damaged fails no read of others.
func imageLimits(im *backup.Image) ublk.Limits {
	const sector = 512
	size := uint64(im.Size())
	return ublk.Limits{
		Size: (size + sector - 1) &^ (sector - 1), LogicalBlockSize: sector, ReadOnly: true,
		OptimalIOSize: uint32(min(im.ChunkSize(), 1<<20)), Boundary: uint64(im.ChunkSize()),
	}
}

// serveImage makes the block device of an image, with the number that is wanted or,
// when that is negative, the first that is free. runDir has the marks by which the
// udev rules keep off: the backup carries the identity of a volume that is in use.
func serveImage(ctx context.Context, ctl *ublk.Control, im *backup.Image, number int, runDir string, log *slog.Logger) (*imageDevice, error) {
	backend, err := ublk.NewAsyncBackend("backup "+im.Backup().ID, imageHandler{im}, imageLimits(im))
	if err != nil {
		return nil, err
	}
	for n := max(number, 0); n < maxMountNumber; n++ {
		_, err := ctl.Info(ctx, n)
		free := errors.Is(err, ublk.ErrNoDevice)
		if err != nil && !free {
			return nil, err
		}
		var mark *deviceMark
		if free {
			if mark, err = markDevice(runDir, n); err != nil {
				return nil, err
			}
		}
		if mark == nil { // somebody has it, or is about to
			if number >= 0 {
				return nil, taken(n)
			}
			continue
		}
		dev, err := ublk.Start(ctx, backend, ublk.Options{
			ID: n, Depth: mountDepth, MaxIOBytes: mountRequest, ReadOnly: true, EndWithServer: true,
			NoPartitionScan: true, Tag: mountTag, Control: ctl, Logger: log,
		})
		if err == nil {
			return &imageDevice{im, dev, backend, mark}, nil
		}
		mark.remove(log)
		if !errors.Is(err, ublk.ErrExists) {
			return nil, fmt.Errorf("block device of backup %s: %w", im.Backup().ID, err)
		}
		if number >= 0 {
			return nil, taken(n)
		}
	}
	return nil, fmt.Errorf("block device of backup %s: no number is free", im.Backup().ID)
}

func taken(n int) error {
	return &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("ublk device %d is there already", n),
		Remedy: "leave --device out to get a free number"}
}

// stop removes the device. With somebody in the way it is gone for him, too, and
// the kernel frees its number when he has closed it; that is no error.
func (d *imageDevice) stop(ctx context.Context, log *slog.Logger) error {
	err := d.dev.Stop(ctx)
	if errors.Is(err, ublk.ErrBusy) {
		err = nil
	}
	d.mark.remove(log)
	return errors.Join(err, d.backend.Close())
}

// markDevice makes the mark of a device that is about to appear. It returns nil
// when somebody else has it.
func markDevice(runDir string, number int) (*deviceMark, error) {
	dir := filepath.Join(runDir, "quarantine")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("mark of a device that nobody is to use by itself: %w", err)
	}
	path := markPath(runDir, number)
	for {
		// Locked before it gets its name, so that nobody sees it unlocked.
		f, err := os.CreateTemp(dir, ".mount-")
		if err != nil {
			return nil, fmt.Errorf("mark of a device that nobody is to use by itself: %w", err)
		}
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			err = os.Link(f.Name(), path)
		}
		os.Remove(f.Name())
		if err == nil {
			return &deviceMark{f, path}, nil
		}
		f.Close()
		if !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("mark of a device that nobody is to use by itself: %w", err)
		}
		if removed, err := removeLeftMark(path); err != nil || !removed {
			return nil, err
		}
	}
}

func markPath(runDir string, number int) string {
	return filepath.Join(runDir, "quarantine", "ublkb"+strconv.Itoa(number))
}

// removeLeftMark removes a mark that nobody has locked, and tells whether it did.
// The daemon's own are not locked either: they are there only with a device, which
// has the number then.
func removeLeftMark(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, nil
}

func (m *deviceMark) remove(log *slog.Logger) {
	if err := os.Remove(m.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("mark of a block device not removed", "path", m.path, "err", err)
	}
	m.file.Close()
}

// removeDead removes what is left of devices whose process was killed: the kernel
// has taken the disk away, and keeps the number. One that is only about to start
// looks the same, but for its mark, which somebody has locked.
func removeDead(ctx context.Context, ctl *ublk.Control, runDir string, log *slog.Logger) error {
	list, err := ctl.List(ctx)
	if err != nil {
		return err
	}
	for _, info := range list {
		if info.Tag != mountTag || info.State != ublk.StateDead {
			continue
		}
		if removed, err := removeLeftMark(markPath(runDir, info.ID)); err != nil || !removed {
			if err != nil {
				log.Warn("mark of a block device not removed", "device", info.ID, "err", err)
			}
			continue
		}
		log.Info("removing what is left of a backup's block device", "device", info.ID)
		// Who still has it open keeps the number from being free, and that for long.
		limited, cancel := context.WithTimeout(ctx, time.Second)
		err := ctl.Delete(limited, info.ID)
		cancel()
		if err != nil && !errors.Is(err, ublk.ErrNoDevice) && !errors.Is(err, ublk.ErrBusy) {
			log.Warn("block device of a killed process not removed", "device", info.ID, "err", err)
		}
	}
	return nil
}
