//go:build vm

package holders

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a blank disk that the virtual machine gives to tests.
const disk = "/dev/nvme0n1"

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func find(t *testing.T, device string) []Holder {
	t.Helper()
	got, err := new(Finder).Find(t.Context(), device)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// expect fails unless exactly the given kinds hold the disk, in this order,
// and every detail contains its text.
func expect(t *testing.T, want ...Holder) {
	t.Helper()
	got := find(t, disk)
	ok := len(got) == len(want)
	for i := 0; ok && i < len(want); i++ {
		ok = got[i].Kind == want[i].Kind && strings.Contains(got[i].Detail, want[i].Detail) &&
			(want[i].Device == "" || got[i].Device == want[i].Device)
	}
	if !ok {
		t.Fatalf("holders:\n got %+v\nwant %+v", got, want)
	}
}

// expectClaimed fails unless an exclusive open is refused as it should be.
func expectClaimed(t *testing.T) {
	t.Helper()
	f, err := Exclusive(disk)
	if err == nil {
		f.Close()
		t.Fatal("claimed a device that is in use")
	}
	if !errors.Is(err, ErrInUse) {
		t.Fatalf("got %v, want ErrInUse", err)
	}
}

func blank(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
}

func mountPoint(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mount point")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestHoldersOnDisk(t *testing.T) {
	blank(t)
	t.Cleanup(func() { blank(t) })

	t.Run("nobody", func(t *testing.T) {
		expect(t)
		f, err := Exclusive(disk)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	})

	t.Run("mount", func(t *testing.T) {
		run(t, "mkfs.ext4", "-q", "-F", disk, "64M")
		dir := mountPoint(t)
		if err := unix.Mount(disk, dir, "ext4", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
		expect(t, Holder{Kind: KindMount, Detail: "mounted on " + dir + " (ext4)"})
		expectClaimed(t)

		// Unmounted lazily, the filesystem lives on with its last open file.
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		expect(t, Holder{Kind: KindMount, Detail: "without a visible mount"})
		f.Close()
	})

	t.Run("mount in another namespace", func(t *testing.T) {
		run(t, "mkfs.ext4", "-q", "-F", disk, "64M")
		dir := mountPoint(t)
		cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c",
			`mount -t ext4 "$0" "$1" && echo mounted && exec cat`, disk, dir)
		in := startCat(t, cmd, "mounted\n")
		got := find(t, disk)
		if len(got) != 1 || got[0].Kind != KindMount || got[0].PID != cmd.Process.Pid || got[0].Command != "cat" ||
			!strings.Contains(got[0].Detail, dir) {
			t.Errorf("got %+v, want the mount in the namespace of PID %d", got, cmd.Process.Pid)
		}
		expectClaimed(t)
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		expect(t)
	})

	t.Run("swap", func(t *testing.T) {
		run(t, "mkswap", disk, "65536")
		run(t, "swapon", disk)
		defer func() {
			run(t, "swapoff", disk)
			expect(t)
		}()
		expect(t, Holder{Kind: KindSwap, Detail: "in use as swap space"})
		expectClaimed(t)
	})

	t.Run("device-mapper", func(t *testing.T) {
		run(t, "dmsetup", "create", "--noudevsync", "--noudevrules", "holders-test", "--table", "0 2048 linear "+disk+" 0")
		defer run(t, "dmsetup", "remove", "--noudevsync", "--noudevrules", "holders-test")
		expect(t, Holder{Kind: KindDevice, Detail: "(holders-test) stands on it"})
		expectClaimed(t)
	})

	t.Run("loop", func(t *testing.T) {
		loop := run(t, "losetup", "--find", "--show", disk)
		defer run(t, "losetup", "-d", loop)
		f, err := os.Open(loop)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		expect(t, Holder{Kind: KindLoop, Device: disk, Detail: loop},
			Holder{Kind: KindProcess, Device: loop, Detail: "open for reading"})
	})

	t.Run("open", func(t *testing.T) {
		// An own node elsewhere: the number counts, not the name.
		node := filepath.Join(t.TempDir(), "node")
		var st unix.Stat_t
		if err := unix.Stat(disk, &st); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", `exec 3<>"$0"; echo open; exec cat`, node)
		in := startCat(t, cmd, "open\n")
		got := find(t, disk)
		if len(got) != 1 || got[0].Kind != KindProcess || got[0].PID != cmd.Process.Pid ||
			!strings.Contains(got[0].Detail, "open for writing by PID") || !strings.Contains(got[0].Detail, node) {
			t.Errorf("got %+v, want PID %d", got, cmd.Process.Pid)
		}
		ignoring := Finder{Ignore: []int{cmd.Process.Pid}}
		if got, err := ignoring.Find(t.Context(), disk); err != nil || len(got) != 0 {
			t.Errorf("ignoring the process: %+v, %v", got, err)
		}
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		expect(t)
	})

	t.Run("mapped", func(t *testing.T) {
		f, err := os.Open(disk)
		if err != nil {
			t.Fatal(err)
		}
		mem, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(mem)
		expect(t, Holder{Kind: KindProcess, Detail: "mapped into memory"})
	})

	t.Run("claimed", func(t *testing.T) {
		f, err := Exclusive(disk)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		expectClaimed(t)
		expect(t, Holder{Kind: KindProcess, Detail: "open for reading"})
		// With the one open file out of sight only the claim remains.
		probing := Finder{Probe: true, Ignore: []int{os.Getpid()}}
		got, err := probing.Find(t.Context(), disk)
		if err != nil || len(got) != 1 || got[0].Kind != KindExclusive {
			t.Errorf("got %+v, %v, want a claim", got, err)
		}
	})

	t.Run("partition", func(t *testing.T) {
		partition(t, 2048, 131072)
		run(t, "mkfs.ext4", "-q", "-F", disk+"p1")
		dir := mountPoint(t)
		if err := unix.Mount(disk+"p1", dir, "ext4", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer func() {
			unix.Unmount(dir, 0)
			partition(t, 0, 0)
		}()
		expect(t, Holder{Kind: KindMount, Device: disk + "p1", Detail: "mounted on " + dir})
		expectClaimed(t)
	})
}

// partition writes a partition table with one partition, in sectors, or none
// when it is of size 0, and makes the kernel read it.
func partition(t *testing.T, start, size uint32) {
	t.Helper()
	sector := make([]byte, 512)
	if size > 0 {
		entry := sector[446:462]
		entry[4] = 0x83 // Linux
		binary.LittleEndian.PutUint32(entry[8:], start)
		binary.LittleEndian.PutUint32(entry[12:], size)
		sector[510], sector[511] = 0x55, 0xaa
	}
	f, err := os.OpenFile(disk, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(sector); err != nil {
		t.Fatal(err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKRRPART, 0); errno != 0 {
		t.Fatalf("read the partition table of %s again: %v", disk, errno)
	}
}

// startCat starts a command that prints ready and then becomes cat, and waits
// until it has. Closing what it returns ends the command.
func startCat(t *testing.T, cmd *exec.Cmd, ready string) io.Closer {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	if _, err := io.WriteString(in, "an echo\n"); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(stdout)
	for _, want := range []string{ready, "an echo\n"} {
		if line, _ := out.ReadString('\n'); line != want {
			t.Fatalf("%s said %q, want %q", cmd, line, want)
		}
	}
	return in
}
