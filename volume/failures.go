package volume

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/ublk"
)

// A disk that fails may do so thousands of times a second. The log has the first
// failures of each volume in each while, and how many there were besides.
const (
	failuresLogged = 10
	failuresWhile  = 10 * time.Second
)

// failureLog is told of the failed requests of one volume's block device. It says
// on which disk and sector of the pool they were, which the error that the
// application got does not. Its methods are called from one goroutine.
type failureLog struct {
	log     *slog.Logger
	metrics *metrics
	pool    string
	volume  string // POOL/VOLUME
	locate  func(f ublk.Failure) []dmswap.DiskRange
	size    func(disk string) (bytes int64, err error)
	now     func() time.Time

	since    time.Time // when this while began
	logged   int       // in this while
	silenced uint64    // since the last line
}

func (c *Controller) failureLog(t target) *failureLog {
	return &failureLog{
		log: c.log, metrics: c.metrics, pool: t.pool.Info().Name, volume: t.String(),
		locate: func(f ublk.Failure) []dmswap.DiskRange { return placesOf(t.pool, t.uuid(), f) },
		size:   diskSize, now: time.Now,
	}
}

// heard implements the Failed of [ublk.Options].
func (l *failureLog) heard(f ublk.Failure, missed uint64) {
	l.silenced += missed
	places := l.locate(f)
	for _, disk := range disksIn(places) {
		l.metrics.diskErrors.WithLabelValues(l.pool, disk, f.Op.String()).Inc()
	}
	now := l.now()
	if now.Sub(l.since) > failuresWhile {
		l.since, l.logged = now, 0
	}
	if l.logged == failuresLogged {
		l.silenced++
		return
	}
	l.logged++
	args := []any{"volume", l.volume, "op", f.Op.String(), "offset", f.Offset, "length", f.Length, "err", f.Errno.Error(), "disk", describePlaces(places)}
	if why := l.why(f, places); why != "" {
		args = append(args, "why", why)
	}
	if l.silenced > 0 {
		args = append(args, "not_logged", l.silenced)
		l.silenced = 0
	}
	l.log.Error("I/O error", args...)
}

// why is known when a disk has become shorter: the errno is that of a bad sector.
func (l *failureLog) why(f ublk.Failure, places []dmswap.DiskRange) string {
	for _, p := range places {
		if size, err := l.size(p.Disk); err == nil && p.Offset+p.Length > size {
			return fmt.Sprintf("%s has become shorter, it ends at sector %d", p.Disk, size/512)
		}
	}
	if f.Short {
		return "the device below has become shorter"
	}
	return ""
}

// diskSize asks sysfs, which does not wait for a disk that hangs, as opening it may.
func diskSize(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("disk %s: %w", path, err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return sectors * 512, err
}

// placesOf finds where a request went. A swap may have come between: then the
// places are those of the other position.
func placesOf(pool *dmswap.Pool, volume string, f ublk.Failure) []dmswap.DiskRange {
	if f.Length == 0 {
		// A flush goes to all disks of the volume.
		disks, _ := pool.DisksOf(volume)
		var places []dmswap.DiskRange
		for _, d := range disks {
			places = append(places, dmswap.DiskRange{Disk: d})
		}
		return places
	}
	places, _ := pool.Locate(volume, int64(f.Offset), int64(f.Length))
	return places
}

func disksIn(places []dmswap.DiskRange) (list []string) {
	for _, p := range places {
		if !slices.Contains(list, p.Disk) {
			list = append(list, p.Disk)
		}
	}
	return list
}

// describePlaces names disks and sectors of 512 bytes, as the kernel's log does.
func describePlaces(places []dmswap.DiskRange) string {
	const most = 4
	var parts []string
	for i, p := range places {
		switch {
		case i == most:
			parts = append(parts, "…")
			return strings.Join(parts, ", ")
		case p.Length == 0:
			parts = append(parts, p.Disk)
		default:
			parts = append(parts, fmt.Sprintf("%s sectors %d+%d", p.Disk, p.Offset/512, p.Length/512))
		}
	}
	if len(parts) == 0 {
		return "not known: the volume is gone"
	}
	return strings.Join(parts, ", ")
}
