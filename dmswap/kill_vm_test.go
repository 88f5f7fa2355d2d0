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

// The test binary runs itself as a process that opens the pool on these disks,
// begins to swap and kills itself at a point of that.
const childDisks = "SWAPBACK_TEST_CHILD_DISKS"

func TestMain(m *testing.M) {
	if disks := os.Getenv(childDisks); disks != "" {
		child(strings.Fields(disks))
	}
	os.Exit(m.Run())
}

func child(disks []string) {
	p, err := Open(ctx, OpenOptions{Disks: disks})
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(3)
	}
	if err := swapNow(p, SwapPair{A: "a", B: "b"}, SwapPair{A: "c", B: "d"}); err != nil {
		fmt.Println("swap:", err)
		os.Exit(4)
	}
	fmt.Println("the point was never reached")
	os.Exit(5)
}

func killChild(t *testing.T, point string, disks []string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SWAPBACK_FAILPOINT="+point, childDisks+"="+strings.Join(disks, " "))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child was to kill itself: %v\n%s", err, out)
	}
}

// TestVMSuspendedDevicesWait kills a process between suspend and commit: the
// devices are suspended, and what waits for them goes on when the pool is opened.
// That the world is right then, at this and every other point, is for soak/crash.
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
	killChild(t, "swap: suspended", p.disks)
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
