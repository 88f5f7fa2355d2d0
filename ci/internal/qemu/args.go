// Package qemu runs the test machine: one QEMU process per machine, its
// command line, its ports and its end.
package qemu

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/ci/internal/guestcfg"
)

// Program is the emulator.
const Program = "qemu-system-x86_64"

// Accel is how the machine's processors are made.
type Accel string

const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
	// Exact is TCG with a clock that counts instructions: slow, but what the
	// guest measures is the same on every run.
	Exact Accel = "icount"
)

// Machine describes one machine.
type Machine struct {
	Accel Accel
	CPUs  int
	// CPU is an emulated processor, as QEMU's -cpu has it; empty for what Accel makes.
	CPU    string
	Memory string
	Kernel string
	Initrd string
	// Console is the file that receives what the kernel prints.
	Console string
	// Sockets are listening unix sockets, by port name.
	Sockets map[string]string
	Disks   []Disk
	// Out is a folder that the guest may write to; empty for none.
	Out string
	// Network is nil for a machine without one.
	Network *Network
}

// Disk is one NVMe disk.
type Disk struct {
	Path, Serial string
	// Keep says that the contents outlive the machine, so that flushes must
	// reach the host's disk.
	Keep bool
	// Direct says that the file can be opened with O_DIRECT.
	Direct bool
}

// Args is QEMU's command line, without the program.
func (m *Machine) Args() []string {
	a := []string{"-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot", "-machine", "q35"}
	cpu := "max"
	switch m.Accel {
	case KVM:
		a = append(a, "-accel", "kvm")
		cpu = "host"
	case Exact:
		a = append(a, "-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off")
	default:
		// Without what costs an emulator much and a test nothing: a page table more to
		// walk, and stac and clac around each access to user space. A sixth of the
		// processor time of the tests of dmswap.
		a = append(a, "-accel", "tcg,thread=multi")
		cpu = "max,-la57,-smap,-smep,-umip"
	}
	if m.CPU != "" && m.Accel != KVM {
		cpu = m.CPU
	}
	a = append(a, "-cpu", cpu,
		"-smp", fmt.Sprint(m.CPUs), "-m", m.Memory,
		"-kernel", m.Kernel, "-initrd", m.Initrd,
		"-append", strings.Join([]string{
			"console=ttyS0", "rdinit=/init",
			// A kernel that is broken must end the machine, not hang it.
			"panic=-1", "oops=panic",
			// An emulated machine on a busy host is late for everything.
			"nowatchdog", "tsc=nowatchdog",
			"mitigations=off", "nokaslr",
			// The guest's init starts the other processors once the kernel has
			// done patching itself: QEMU 7.2 now and then runs an instruction
			// that another emulated processor has just replaced ("Oops: int3",
			// one boot in 20; mended in QEMU 8.1).
			"maxcpus=1",
			"loglevel=6",
		}, " "),
		"-serial", "file:"+m.Console,
		"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=root,mount_tag="+guestcfg.TagRoot,
		"-device", "virtio-serial-pci,max_ports=8",
	)
	for i, port := range []string{guestcfg.PortControl, guestcfg.PortStdout, guestcfg.PortStderr} {
		a = append(a,
			"-chardev", fmt.Sprintf("socket,id=port%d,path=%s", i, escape(m.Sockets[port])),
			"-device", fmt.Sprintf("virtserialport,chardev=port%d,name=%s,nr=%d", i, port, i+1),
		)
	}
	if m.Out != "" {
		a = append(a,
			"-fsdev", "local,id=out,path="+escape(m.Out)+",security_model=none,multidevs=remap",
			"-device", "virtio-9p-pci,fsdev=out,mount_tag="+guestcfg.TagOut,
		)
	}
	if m.Network != nil {
		a = append(a, m.Network.args()...)
	}
	for i, d := range m.Disks {
		a = append(a,
			"-drive", fmt.Sprintf("file=%s,if=none,id=disk%d,format=raw,discard=unmap,%s", escape(d.Path), i, d.caching()),
			"-device", fmt.Sprintf("nvme,serial=%s,drive=disk%d", d.Serial, i),
		)
	}
	return a
}

// caching keeps the host's page cache out of the way where the filesystem
// allows. A disk that dies with the machine need not be flushed to the host's.
func (d Disk) caching() string {
	s := "cache.direct=off,aio=threads"
	if d.Direct {
		s = "cache.direct=on,aio=native"
	}
	if !d.Keep {
		s += ",cache.no-flush=on"
	}
	return s
}

// escape doubles the commas that would end a value.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// MakeDisk makes a sparse file of size bytes unless it is there with that size.
// It says whether the file can be opened with O_DIRECT (a tmpfs, for one, may
// say no).
func MakeDisk(path string, size int64) (direct bool, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, fmt.Errorf("make a disk: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("make a disk: %w", err)
	}
	switch {
	case info.Size() == size:
	case info.Size() > size:
		return false, fmt.Errorf("the disk %s is larger (%d bytes) than asked for (%d); remove it or ask for its size", path, info.Size(), size)
	default:
		if err := f.Truncate(size); err != nil {
			return false, fmt.Errorf("make a disk of %d bytes: %w", size, err)
		}
	}
	d, err := os.OpenFile(path, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return false, nil
	}
	defer d.Close()
	return directWorks(d), nil
}

// BlankDisk frees all that was written to a disk.
func BlankDisk(path string) error {
	info, err := os.Stat(path)
	if err == nil {
		if err = os.Truncate(path, 0); err == nil {
			err = os.Truncate(path, info.Size())
		}
	}
	if err != nil {
		return fmt.Errorf("make the disk blank again: %w", err)
	}
	return nil
}

// directWorks reads one block past the page cache: some filesystems accept the
// flag and fail the read.
func directWorks(f *os.File) bool {
	buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return false
	}
	defer unix.Munmap(buf)
	_, err = unix.Pread(int(f.Fd()), buf, 0)
	return err == nil
}
