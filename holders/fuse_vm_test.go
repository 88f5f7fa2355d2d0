//go:build vm

package holders

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFileOnSomebodysFUSE: a filesystem that a user serves shows nothing to
// others, to root neither. It has no device nodes, as it is mounted without them,
// so a file that is open on it keeps nobody from knowing who holds a disk. With
// device nodes nothing is known of it, and that has to be said.
func TestFileOnSomebodysFUSE(t *testing.T) {
	_ = exec.Command("modprobe", "fuse").Run() // built in, else
	for _, c := range []struct {
		flags      uintptr
		incomplete bool
	}{{unix.MS_NODEV | unix.MS_NOSUID, false}, {0, true}} {
		server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		dir := t.TempDir()
		data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=65534,group_id=65534", server.Fd())
		if err := unix.Mount("somebody", dir, "fuse", c.flags, data); err != nil {
			t.Fatal(err)
		}
		// The root directory can be opened so without asking the server.
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = new(Finder).Find(t.Context(), disk)
			unix.Close(fd)
		}
		if uerr := unix.Unmount(dir, unix.MNT_DETACH); uerr != nil {
			t.Error(uerr)
		}
		if _, incomplete := err.(*IncompleteError); incomplete != c.incomplete || err != nil && !incomplete {
			t.Errorf("mounted with flags %#x: %v", c.flags, err)
		}
	}
}
