package pace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/blockdevice"
	"golang.org/x/sys/unix"
)

// Machine is a Source: the pressure of this machine, and what its disks move that
// this process does not. It is for one goroutine.
type Machine struct {
	proc, sys string
	fs        procfs.FS
	block     blockdevice.FS
	disks     map[devno]bool
	// writes says that this process writes to the disks as well.
	writes bool

	last   counters
	credit uint64 // bytes that this process wrote and the disks have not yet
}

// devno is the number of a block device.
type devno struct{ major, minor uint32 }

// counters are the kernel's, and only go up.
type counters struct {
	at                time.Time
	stalled           uint64 // µs in which somebody waited for I/O
	read, written     uint64 // bytes, of the disks
	ownRead, ownWrite uint64 // bytes, of this process
}

// ErrNoPressure says that the kernel does not tell the pressure.
var ErrNoPressure = errors.New("the kernel does not tell the pressure of I/O")

const (
	sector = 512 // of the kernel's counters, whatever the disk has
	// ownShare is the part of what the process writes that a file system writes in
	// addition.
	ownShare = 50
	// maxCredit bounds what is waited for: a file that is removed before it was
	// written never gets to the disk.
	maxCredit = 1 << 30
)

// Watch watches the disks under the files or devices that are read. own is a file or
// folder that this process writes to, empty when that lies on no disk of this machine.
func Watch(read []string, own string) (*Machine, error) {
	return watch("/proc", "/sys", read, own)
}

func watch(proc, sys string, read []string, own string) (*Machine, error) {
	m := &Machine{proc: proc, sys: sys, disks: make(map[devno]bool)}
	var err error
	if m.fs, err = procfs.NewFS(proc); err != nil {
		return nil, err
	}
	if m.block, err = blockdevice.NewFS(proc, sys); err != nil {
		return nil, err
	}
	for _, path := range read {
		if err := m.add(path, m.disks); err != nil {
			return nil, err
		}
	}
	if own != "" {
		written := make(map[devno]bool)
		if err := m.add(own, written); err != nil {
			return nil, err
		}
		for d := range written {
			m.writes = m.writes || m.disks[d]
		}
	}
	m.last, err = m.count()
	return m, err
}

// add finds the disks that carry a file or device.
func (m *Machine) add(path string, to map[devno]bool) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	no := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		no = st.Rdev
	}
	return m.below(devno{unix.Major(no), unix.Minor(no)}, to, 0)
}

// below goes down from a device to the disks: through partitions and stacked
// devices. What sysfs does not know, such as the device of a network file system,
// has no disk here.
func (m *Machine) below(d devno, to map[devno]bool, depth int) error {
	dir, err := filepath.EvalSymlinks(filepath.Join(m.sys, "dev/block", fmt.Sprintf("%d:%d", d.major, d.minor)))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	slaves, err := os.ReadDir(filepath.Join(dir, "slaves"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(slaves) == 0 || depth > 16 {
		no, err := readDevno(dir)
		if err == nil {
			to[no] = true
		}
		return err
	}
	for _, s := range slaves {
		no, err := readDevno(filepath.Join(dir, "slaves", s.Name()))
		if err != nil {
			return err
		}
		if err := m.below(no, to, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func readDevno(dir string) (d devno, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return d, err
	}
	if _, err := fmt.Sscanf(strings.TrimSpace(string(text)), "%d:%d", &d.major, &d.minor); err != nil {
		return d, fmt.Errorf("%s/dev: %w", dir, err)
	}
	return d, nil
}

func (m *Machine) count() (c counters, err error) {
	c.at = time.Now()
	psi, err := m.fs.PSIStatsForResource("io")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) || err == nil && psi.Some == nil {
		return c, ErrNoPressure
	}
	if err != nil {
		return c, err
	}
	c.stalled = psi.Some.Total
	stats, err := m.block.ProcDiskstats()
	if err != nil {
		return c, err
	}
	for _, s := range stats {
		if m.disks[devno{s.MajorNumber, s.MinorNumber}] {
			c.read += s.ReadSectors * sector
			c.written += s.WriteSectors * sector
		}
	}
	self, err := m.fs.Self()
	if err != nil {
		return c, err
	}
	own, err := self.IO()
	if err != nil {
		return c, err
	}
	c.ownRead, c.ownWrite = own.ReadBytes, own.WriteBytes
	return c, nil
}

// Read says what happened since the last call.
func (m *Machine) Read() (Reading, error) {
	now, err := m.count()
	if err != nil {
		return Reading{}, err
	}
	r := m.between(m.last, now)
	m.last = now
	return r, nil
}

func (m *Machine) between(last, now counters) Reading {
	dt := max(now.at.Sub(last.at).Seconds(), 1e-3)
	others := less(now.read-last.read, now.ownRead-last.ownRead)
	// A write counts for the process when it goes to the page cache, and for the
	// disk when it gets there.
	written := now.written - last.written
	var log uint64 // what the file system writes itself because of the process's writes
	if m.writes {
		own := now.ownWrite - last.ownWrite
		m.credit, log = m.credit+own, own/ownShare
	}
	others += less(written, m.credit+log)
	m.credit = min(less(m.credit, written), maxCredit)
	return Reading{
		Pressure: min(float64(now.stalled-last.stalled)/1e6/dt, 1),
		Others:   float64(others) / dt,
	}
}

// less is a-b, at least 0.
func less(a, b uint64) uint64 { return a - min(a, b) }
