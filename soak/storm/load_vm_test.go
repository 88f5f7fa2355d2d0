//go:build vm

package storm

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/soak/rig"
)

// loads are fio on a raw volume and in two filesystems, and a probe.
type loads struct {
	t     *testing.T
	d     *rig.Daemon
	loops map[string]*rig.FioLoop // by volume
	jobs  map[string][]string
	files map[string]string // mount point by volume
	probe *prober
	slow  []string // the longest request of each
}

// filesystems are checked by their own tools, which change nothing.
var filesystems = map[string]struct {
	size       int64
	mkfs, fsck string
}{
	"ext4": {128 * rig.MiB, "mkfs.ext4 -q -F", "e2fsck -f -n"},
	"xfs":  {320 * rig.MiB, "mkfs.xfs -q -f", "xfs_repair -n"},
}

// startLoads makes the volumes and begins.
func startLoads(t *testing.T, d *rig.Daemon) *loads {
	t.Helper()
	l := &loads{t: t, d: d, loops: map[string]*rig.FioLoop{}, jobs: map[string][]string{}, files: map[string]string{}}
	l.jobs["raw"] = verify(d.Volume("raw", 64*rig.MiB).Device, "--ioengine=io_uring", "--direct=1", "--iodepth=16", "--offset_increment=32m")
	for name, fs := range filesystems {
		v := d.Volume(name, fs.size)
		rig.Tool(t, "sh", "-c", fs.mkfs+" "+v.Device)
		l.files[name] = rig.Mount(t, v.Device, name)
	}
	// Through the page cache, with the journal's flushes; and past it. Both at a
	// pace that leaves the processors to others.
	l.jobs["ext4"] = verify("", "--directory="+l.files["ext4"], "--ioengine=psync", "--fsync=16", "--fallocate=none", "--rate_iops=50")
	l.jobs["xfs"] = verify("", "--directory="+l.files["xfs"], "--ioengine=io_uring", "--direct=1", "--iodepth=8", "--fsync=16", "--fallocate=none", "--rate_iops=50")
	l.probe = startProber(t, d.Volume("probe", 8*rig.MiB).Device)
	for name, job := range l.jobs {
		l.loops[name] = rig.LoopFio(t, job)
	}
	for name := range l.jobs {
		rig.WaitUntil(t, "fio on volume "+name+" to write", func() bool { return d.Show(name).IO.Writes > 100 })
	}
	return l
}

// verify is a random write of mixed block sizes by two jobs, read back by checksum.
func verify(device string, more ...string) []string {
	args := []string{
		"--name=verify", "--rw=randwrite", "--bsrange=4k-64k", "--bs_unaligned=0", "--blockalign=4k", "--numjobs=2", "--size=4m",
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randrepeat=1", "--group_reporting=1",
	}
	if device != "" {
		args = append(args, "--filename="+device)
	}
	return append(args, more...)
}

// waitWrites waits until fio has got on, however slow the machine is.
func (l *loads) waitWrites(n uint64) {
	l.t.Helper()
	start := l.d.Show("raw").IO
	rig.WaitUntil(l.t, "fio to get on", func() bool {
		now := l.d.Show("raw").IO
		return now.Writes+now.Reads >= start.Writes+start.Reads+n || l.loops["raw"].Ended()
	})
}

// freeze stops the loads. What they have written to the page cache is on its way
// to the disks then, and later there is nothing left for the kernel to write.
func (l *loads) freeze() {
	l.probe.mu.Lock()
	for _, f := range l.loops {
		f.Freeze()
	}
	unix.Sync()
}

func (l *loads) thaw() {
	for _, f := range l.loops {
		f.Thaw()
	}
	l.probe.mu.Unlock()
}

// check fails the test when a load has failed.
func (l *loads) check() {
	l.t.Helper()
	for _, f := range l.loops {
		if err := f.Err(); err != nil {
			l.t.Error(err)
		}
	}
	if err := l.probe.err(); err != nil {
		l.t.Errorf("probe: %v", err)
	}
}

// finish ends the loads, and reads everything once more: by the filesystems'
// checks, and, from the disks, what the last run of fio had written.
func (l *loads) finish() {
	l.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(l.loops)) {
		runs, longest := l.loops[name].Stop()
		l.slow = append(l.slow, fmt.Sprintf("%v on %s (%d runs)", longest.Round(time.Millisecond), name, runs))
		if runs == 0 {
			l.t.Errorf("fio on %s did not come to the end of a single run", name)
		}
	}
	l.slow = append(l.slow, fmt.Sprintf("%v one block at a time", l.probe.stop().Round(time.Millisecond)))
	for name, dir := range l.files {
		rig.Unmount(l.t, dir)
		device := l.d.Show(name).Device
		rig.Tool(l.t, "sh", "-c", filesystems[name].fsck+" "+device)
		if err := unix.Mount(device, dir, name, 0, ""); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		l.t.Fatal(err)
	}
	for _, job := range l.jobs {
		rig.RunFio(l.t, append(job, "--verify_only"))
	}
	for _, dir := range l.files {
		rig.Unmount(l.t, dir)
	}
}

// longest tells how long the longest request of each load took.
func (l *loads) longest() string { return strings.Join(l.slow, ", ") }
