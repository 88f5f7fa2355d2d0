//go:build vm && failpoint

package dmswap

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/swapback/swapback/dmswap/dm"
)

// The test binary runs itself as a process that opens the pool, begins an
// operation and kills itself at a point of it.
const (
	childOp    = "SWAPBACK_TEST_OP"
	childDisks = "SWAPBACK_TEST_CHILD_DISKS"
)

func TestMain(m *testing.M) {
	if op := os.Getenv(childOp); op != "" {
		child(op, strings.Fields(os.Getenv(childDisks)))
	}
	os.Exit(m.Run())
}

var childOps = map[string]func(p *Pool) error{
	"swap": func(p *Pool) error { return swapNow(p, SwapPair{A: "a", B: "b"}, SwapPair{A: "c", B: "d"}) },
	"create": func(p *Pool) error {
		_, err := p.CreateVolume(ctx, VolumeSpec{Name: "new", Size: 4 << 20, Stripes: 2})
		return err
	},
	"grow":   func(p *Pool) error { _, err := p.GrowVolume(ctx, "a", 12<<20); return err },
	"delete": func(p *Pool) error { return p.DeleteVolume(ctx, "e") },
	"snapshot": func(p *Pool) error {
		list, err := p.OpenSnapshots(ctx, []string{"a", "b"}, SnapshotOptions{})
		if err != nil {
			return err
		}
		for _, s := range list {
			if err := s.Close(ctx); err != nil {
				return err
			}
		}
		return nil
	},
}

func child(op string, disks []string) {
	p, err := Open(ctx, OpenOptions{Disks: disks})
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(3)
	}
	if err := childOps[op](p); err != nil {
		fmt.Println(op+":", err)
		os.Exit(4)
	}
	fmt.Println("the point was never reached")
	os.Exit(5)
}

// TestVMKill kills a process at the points of its operations. The volumes are
// open and written to meanwhile, as by a ublk server that was adopted: nothing
// of that may fail, it may only wait.
func TestVMKill(t *testing.T) {
	const size = 8 << 20
	for _, tt := range []struct {
		op, point string
		done      bool // the new world is expected
	}{
		{"swap", "swap: preloaded", false},
		{"swap", "commit: staged", false},
		{"swap", "swap: staged", false},
		{"swap", "swap: suspended", false},
		{"swap", "commit: published", true},
		{"swap", "swap: committed", true},
		{"create", "create: device made", false},
		{"create", "commit: published", true},
		{"grow", "grow: loaded", false},
		{"grow", "commit: staged", false},
		{"grow", "grow: committed", true},
		{"delete", "delete: mapping removed", false},
		{"delete", "commit: published", true},
		{"snapshot", "snapshot: reserved", false},
		{"snapshot", "snapshot: built", false},
		{"snapshot", "snapshot: suspended", false},
		{"snapshot", "snapshot: volumes resumed", false},
		{"snapshot", "snapshot close: cut off", false},
		{"snapshot", "snapshot close: devices removed", false},
	} {
		t.Run(tt.op+" at "+tt.point, func(t *testing.T) {
			p := newVMPool(t, 1<<20)
			files := map[string]*os.File{}
			for _, name := range []string{"a", "b", "c", "d", "e"} {
				s := VolumeSpec{Name: name, Size: size}
				if name == "b" {
					s.Stripes = 2
				}
				v := mustCreate(t, p.Pool, s)
				f := direct(t, v.Device)
				fill(t, f, name[0], size)
				if name == "e" {
					f.Close()
					continue
				}
				files[name] = f
			}
			before := fingerprint(p.Pool)
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			// What users do goes on meanwhile, on one of the volumes.
			l := startLoad(t, files["c"].Name(), 'x', size/blockSize, 2)
			killChild(t, tt.op, tt.point, p.disks)
			p.open(t)
			mustCheck(t, p.Pool)
			l.waitFor(t, 20)
			l.stop(t)
			if got := fingerprint(p.Pool); (got != before) != tt.done {
				t.Errorf("done: want %v, but the pool went from\n%sto\n%s", tt.done, before, got)
			}
			shows := map[string]byte{"a": 'a', "b": 'b'}
			if tt.op == "swap" && tt.done {
				shows = map[string]byte{"a": 'b', "b": 'a'}
			}
			for name, tag := range shows {
				verify(t, files[name], tag, size)
			}
			for _, f := range files {
				f.Close()
			}
			checkFresh(t, p)
		})
	}
}

// checkFresh does everything once more with the pool that was opened.
func checkFresh(t *testing.T, p *vmPool) {
	t.Helper()
	for _, op := range []string{"swap", "snapshot", "grow"} {
		if err := childOps[op](p.Pool); err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s afterwards: %v", op, err)
		}
		mustCheck(t, p.Pool)
	}
}

func killChild(t *testing.T, op, point string, disks []string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childOp+"="+op, "SWAPBACK_FAILPOINT="+point, childDisks+"="+strings.Join(disks, " "))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child was to kill itself: %v\n%s", err, out)
	}
}

// TestVMSuspendedDevicesWait shows that the kill tests test something: killed
// between suspend and commit, the devices are suspended.
func TestVMSuspendedDevicesWait(t *testing.T) {
	p := newVMPool(t, 1<<20)
	for _, name := range []string{"a", "b", "c", "d"} {
		mustCreate(t, p.Pool, VolumeSpec{Name: name, Size: 4 << 20})
	}
	v := p.volume(t, "a")
	f := direct(t, v.Device)
	fill(t, f, 'a', v.Size)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	killChild(t, "swap", "swap: suspended", p.disks)
	c, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	info, err := c.Info(dm.ByUUID(dmUUID(p.uuid, v.UUID, "")))
	if err != nil || !info.Suspended || !info.Inactive {
		t.Errorf("after the kill: %+v, %v", info, err)
	}
	read := make(chan error, 1)
	go func() { _, err := f.ReadAt(alignedBuffer(blockSize), 0); read <- err }()
	p.open(t)
	if err := <-read; err != nil {
		t.Errorf("a read that waited: %v", err)
	}
	verify(t, f, 'a', v.Size)
	f.Close()
}
