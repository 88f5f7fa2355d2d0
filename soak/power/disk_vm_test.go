//go:build vm

package power

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/soak/power/logwrites"
	"github.com/swapback/swapback/soak/rig"
)

// loggedDisk is a disk with a volatile cache, cut into members, all of whose
// writes go into one log: it has one order over all members.
type loggedDisk struct {
	t       *testing.T
	control *dm.Control
	ref     dm.Ref
	made    []dm.Ref // the members, then the logged device
	logDisk string
	Members []string // paths
}

// newLoggedDisk needs a disk for the data and one for the log. What the data
// disk held reads as zeroes.
func newLoggedDisk(t *testing.T, name, dataDisk, logDisk string, members int, size int64) *loggedDisk {
	t.Helper()
	if out, err := exec.Command("modprobe", "dm_log_writes").CombinedOutput(); err != nil {
		t.Fatalf("modprobe dm_log_writes: %v\n%s", err, out)
	}
	control, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	l := &loggedDisk{t: t, control: control, logDisk: logDisk}
	t.Cleanup(func() {
		l.Close()
		control.Close()
	})
	total := int64(members) * size
	rig.Tool(t, "blkdiscard", "-f", "-z", "-l", fmt.Sprint(total), dataDisk)
	rig.Tool(t, "blkdiscard", "-f", "-z", "-l", fmt.Sprint(rig.MiB), logDisk)
	logged := l.device(name, total, dm.Other{Name: "log-writes", Text: deviceOf(t, dataDisk).String() + " " + deviceOf(t, logDisk).String()})
	l.ref = l.made[0]
	for i := range members {
		m := l.device(fmt.Sprintf("%s-%d", name, i), size, dm.Linear{Device: logged.Device, Start: uint64(int64(i) * size / dm.SectorSize)})
		l.Members = append(l.Members, m.Path())
		mustBeVolatile(t, m)
	}
	return l
}

func (l *loggedDisk) device(name string, size int64, target dm.Target) dm.Info {
	l.t.Helper()
	ref := dm.ByName(name)
	if _, err := l.control.Create(name, "SOAK-"+name); err != nil {
		l.t.Fatal(err)
	}
	l.made = append([]dm.Ref{ref}, l.made...)
	table := dm.Table{{Start: 0, Length: uint64(size / dm.SectorSize), Target: target}}
	if err := errors.Join(l.control.Load(ref, table, false), l.control.Resume(l.t.Context(), ref)); err != nil {
		l.t.Fatal(err)
	}
	info, err := l.control.Info(ref)
	if err != nil {
		l.t.Fatal(err)
	}
	return info
}

// mustBeVolatile fails the test unless flushes and FUA go down to the disk:
// without a cache to flush, a log says nothing about them.
func mustBeVolatile(t *testing.T, m dm.Info) {
	t.Helper()
	for file, want := range map[string]string{"write_cache": "write back", "fua": "1"} {
		got, err := os.ReadFile(fmt.Sprintf("/sys/block/dm-%d/queue/%s", m.Device.Minor, file))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Fatalf("%s of %s is %q, %v: want %q", file, m.Name, got, err, want)
		}
	}
}

// Mark puts a mark behind everything that was acknowledged before.
func (l *loggedDisk) Mark(text string) {
	if err := l.control.Message(l.ref, 0, "mark "+text); err != nil {
		l.t.Errorf("mark: %v", err)
	}
}

// Close ends the log and takes the devices away.
func (l *loggedDisk) Close() {
	for _, ref := range l.made {
		if err := l.control.Remove(ref, false); err != nil {
			l.t.Errorf("%v", err)
		}
	}
	l.made = nil
}

// Log reads the log, after Close.
func (l *loggedDisk) Log() *logwrites.Log {
	l.t.Helper()
	f, err := os.Open(l.logDisk)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { f.Close() })
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		l.t.Fatal(err)
	}
	// What an earlier reader left in the page cache is not what is there now.
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		l.t.Fatal(err)
	}
	log, err := logwrites.Read(f, size)
	if err != nil {
		l.t.Fatal(err)
	}
	return log
}

func deviceOf(t *testing.T, path string) dm.Device {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return dm.DeviceOf(st.Rdev)
}

// scratch is the disk as it is after the power was cut: members in memory that a
// pool is opened on, and beside them what is durable, to begin anew from.
type scratch struct {
	t       *testing.T
	durable []byte // of all members, one behind the other
	disk    []byte // shared with Members
	Members []string
}

func newScratch(t *testing.T, members int, size int64) *scratch {
	t.Helper()
	total := int64(members) * size
	f, err := os.Create(t.TempDir() + "/disk")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(total); err != nil {
		t.Fatal(err)
	}
	s := &scratch{t: t}
	s.disk = mapped(t, int(f.Fd()), int(total), unix.MAP_SHARED)
	s.durable = mapped(t, -1, int(total), unix.MAP_ANON|unix.MAP_PRIVATE)
	for i := range members {
		dev := strings.TrimSpace(rig.Tool(t, "losetup", "--show", "-f", "-o", fmt.Sprint(int64(i)*size), "--sizelimit", fmt.Sprint(size), f.Name()))
		t.Cleanup(func() { rig.Tool(t, "losetup", "-d", dev) })
		s.Members = append(s.Members, dev)
	}
	return s
}

func mapped(t *testing.T, fd, size, flags int) []byte {
	t.Helper()
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// Settle takes what has become durable.
func (s *scratch) Settle(p logwrites.Patch) {
	copy(s.durable[p.Offset:], p.Data)
	copy(s.disk[p.Offset:], p.Data)
}

// Survive puts what happened to survive over it, until Reset.
func (s *scratch) Survive(patches []logwrites.Patch) {
	for _, p := range patches {
		copy(s.disk[p.Offset:], p.Data)
	}
}

// Reset undoes patches, and whatever was written to label, metadata and change map
// of the members; with all, whatever was written anywhere.
func (s *scratch) Reset(patches []logwrites.Patch, all bool) {
	for _, p := range patches {
		copy(s.disk[p.Offset:], s.durable[p.Offset:p.Offset+int64(len(p.Data))])
	}
	size := len(s.disk) / len(s.Members)
	for m := range s.Members {
		if all {
			s.restore(m*size, size)
			continue
		}
		for _, at := range []int{0, metadataSlot, changesAt} { // the label lies before the first slot
			s.restore(m*size+at, metadataUsed)
		}
	}
}

func (s *scratch) restore(from, length int) {
	const step = 64 << 10
	for at := from; at < from+length; at += step {
		if n := min(step, from+length-at); !bytes.Equal(s.disk[at:at+n], s.durable[at:at+n]) {
			copy(s.disk[at:at+n], s.durable[at:at+n])
		}
	}
}

// FirstStray is the first offset at which the disk is not what was put there,
// or -1.
func (s *scratch) FirstStray() int {
	if bytes.Equal(s.disk, s.durable) {
		return -1
	}
	return rig.FirstDifference(s.disk, s.durable)
}
