//go:build vm

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

func TestSwapExchangesContents(t *testing.T) {
	d := startDaemon(t)
	d.Pool()
	a := d.Volume("a", 16*MiB)
	b := d.VolumeWith(api.CreateVolumeRequest{Name: "b", Size: 16 * MiB, Stripes: 2})
	dataA, dataB := rig.RandomBytes(10, int(a.Size)), rig.RandomBytes(11, int(b.Size))
	rig.WriteDevice(t, a.Device, 0, dataA)
	rig.WriteDevice(t, b.Device, 0, dataB)
	// Fill the page cache with what is going to be stale.
	if got, err := os.ReadFile(a.Device); err != nil || !bytes.Equal(got, dataA) {
		t.Fatalf("cached read before the swap: %v", err)
	}

	res := d.Swap("a", "b")
	if !res.Coherent || res.Warning != "" {
		t.Errorf("coherent %v, warning %q", res.Coherent, res.Warning)
	}
	for _, v := range []struct {
		vol  api.Volume
		want []byte
	}{{a, dataB}, {b, dataA}} {
		if !bytes.Equal(rig.ReadDevice(t, v.vol.Device, 0, len(v.want)), v.want) {
			t.Errorf("%s does not show the other volume's data", v.vol.Name)
		}
		if got, err := os.ReadFile(v.vol.Device); err != nil || !bytes.Equal(got, v.want) {
			t.Errorf("%s shows stale data through the page cache: %v", v.vol.Name, err)
		}
	}
	if now := d.Show("a"); now.Device != a.Device || now.UUID != a.UUID || now.Position.ID != b.Position.ID ||
		now.Position.Stripes != 2 || now.Position.Generation <= b.Position.Generation {
		t.Errorf("after the swap a is %+v", now)
	}

	d.Swap("a", "b") // is the undo
	if !bytes.Equal(rig.ReadDevice(t, a.Device, 0, len(dataA)), dataA) {
		t.Error("the second swap did not bring the first data back")
	}
}

func TestSwapOfSeveralPairsAndDetachedVolumes(t *testing.T) {
	d := startDaemon(t)
	d.Pool()
	data := map[string][]byte{}
	for i, name := range []string{"a", "b", "c", "d"} {
		v := d.Volume(name, 8*MiB)
		data[name] = rig.RandomBytes(uint64(20+i), int(v.Size))
		rig.WriteDevice(t, v.Device, 0, data[name])
	}
	if _, err := d.Client.Detach(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	d.Swap("a", "b", "c", "d")
	if _, err := d.Client.Attach(t.Context(), "d", api.AttachRequest{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a": "b", "b": "a", "c": "d", "d": "c"} {
		v := d.Show(name)
		if !bytes.Equal(rig.ReadDevice(t, v.Device, 0, int(v.Size)), data[want]) {
			t.Errorf("%s does not show what %s had", name, want)
		}
	}
}

// TestSwapUnderLoad swaps while fio reads and writes through the device. With
// hold nothing fails; with refuse EBUSY is seen, and only from this swap.
func TestSwapUnderLoad(t *testing.T) {
	t.Run("hold", func(t *testing.T) {
		d := startDaemon(t)
		d.Pool()
		a, _ := d.Volume("a", 64*MiB), d.Volume("b", 64*MiB)
		load := d.StartFio("a", rig.MixedJob(a.Device))
		d.WaitWrites("a", 200)
		held := uint64(0)
		for range 5 {
			res := d.swapUnder(api.BusyHold)
			held += res.Held
			t.Logf("pause %.1f ms, %d requests held", res.Pause*1e3, res.Held)
			d.WaitWrites("a", 100)
		}
		job := load.Stop()
		t.Logf("fio's longest latency: read %.1f ms, write %.1f ms", job.Read.Lat.Max/1e6, job.Write.Lat.Max/1e6)
		if job.TotalErr != 0 {
			t.Errorf("fio saw %d errors, the first errno %d", job.TotalErr, job.FirstError)
		}
		if held == 0 {
			t.Error("no request was held in five swaps under load: the gate was not tried")
		}
	})
	t.Run("refuse", func(t *testing.T) {
		d := startDaemon(t)
		d.Pool()
		a, _ := d.Volume("a", 64*MiB), d.Volume("b", 64*MiB)
		load := startReader(t, a.Device)
		var refused uint64
		for range 5 {
			load.waitReads(20)
			refused += d.swapUnder(api.BusyRefuse).Refused
		}
		before := load.busy.Load()
		if refused == 0 || before == 0 {
			t.Errorf("the daemon refused %d requests and the reader saw EBUSY %d times: want both above 0", refused, before)
		}
		load.waitReads(200) // serving again: EBUSY is over
		load.stop()
		// One request can be under way while a swap's result is put together.
		after := load.busy.Load()
		if after > before+1 {
			t.Errorf("EBUSY was seen %d times after the last swap", after-before)
		}
		if count := d.Show("a").IO.Refused; uint64(after) != count {
			t.Errorf("EBUSY was seen %d times, the daemon counts %d", after, count)
		}
		if other := load.other.Load(); other != 0 {
			t.Errorf("the reader saw %d errors other than EBUSY", other)
		}
	})
}

// TestSwapRefusals: each has its reason, and changes nothing.
func TestSwapRefusals(t *testing.T) {
	d := startDaemon(t)
	d.Pool()
	a, b := d.Volume("a", 64*MiB), d.Volume("b", 64*MiB)
	d.Volume("larger", 128*MiB)
	rig.Tool(t, "mkfs.ext4", "-q", "-F", b.Device)
	refused := func(t *testing.T, req api.SwapRequest, code string, words ...string) {
		t.Helper()
		before := []api.Position{d.Show("a").Position, d.Show("b").Position}
		_, err := d.Client.Swap(t.Context(), req)
		if err == nil {
			t.Fatal("the swap was not refused")
		}
		if api.CodeOf(err) != code {
			t.Errorf("code %q, want %q", api.CodeOf(err), code)
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("the reason does not say %q:\n%v", w, err)
			}
		}
		for i, name := range []string{"a", "b"} {
			if now := d.Show(name); now.Position.ID != before[i].ID || now.Position.Generation != before[i].Generation || now.State != api.StateServing {
				t.Errorf("the refused swap changed %s: %+v", name, now)
			}
		}
	}
	pair := func(x, y string) api.SwapRequest { return api.SwapRequest{Pairs: []api.SwapPair{{A: x, B: y}}} }

	t.Run("wrong generation", func(t *testing.T) {
		req := pair("a", "b")
		req.Pairs[0].ExpectB = 4711
		refused(t, req, api.CodeGeneration, "4711")
	})
	t.Run("unequal sizes", func(t *testing.T) { refused(t, pair("a", "larger"), api.CodeInvalid, "size") })
	t.Run("same volume", func(t *testing.T) { refused(t, pair("a", "a"), api.CodeInvalid) })
	t.Run("unknown volume", func(t *testing.T) { refused(t, pair("a", "nix"), api.CodeNotFound, `"nix"`) })
	t.Run("open descriptor", func(t *testing.T) {
		f, err := os.Open(a.Device)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		refused(t, pair("a", "b"), api.CodeInUse, a.Device, fmt.Sprint(os.Getpid()))
		// A caller who knows better says so.
		req := pair("a", "b")
		req.AllowHolders = true
		for range 2 {
			if _, err := d.Client.Swap(t.Context(), req); err != nil {
				t.Errorf("with allow_holders: %v", err)
			}
		}
	})
	t.Run("mounted in this namespace", func(t *testing.T) {
		dir := rig.Mount(t, b.Device, "ext4")
		defer rig.Unmount(t, dir)
		refused(t, pair("a", "b"), api.CodeInUse, dir, b.Device)
	})
	t.Run("mounted in another namespace", func(t *testing.T) {
		cmd := exec.Command("unshare", "-m", "sh", "-c", "mount "+b.Device+" /mnt && echo mounted && exec sleep 1000")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
		if _, err := out.Read(make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
		refused(t, pair("a", "b"), api.CodeInUse, b.Device, "/mnt")
	})
	t.Run("snapshot open", func(t *testing.T) {
		_, end, err := d.Client.OpenSnapshot(t.Context(), api.SnapshotRequest{Volumes: []string{"a"}})
		if err != nil {
			t.Fatal(err)
		}
		refused(t, pair("a", "b"), api.CodeBusy, "snapshot")
		if err := end(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.waitNoSnapshot("a")
	})
	t.Run("quarantined", func(t *testing.T) {
		if _, err := d.Client.Quarantine(t.Context(), "b", api.QuarantineRequest{Quarantine: api.Quarantine{Reason: "test", Time: time.Now()}}); err != nil {
			t.Fatal(err)
		}
		refused(t, pair("a", "b"), api.CodeQuarantined, "release")
		expectNoWrites(t, b.Device)
		if err := d.Client.DeleteVolume(t.Context(), "b", false); api.CodeOf(err) != api.CodeQuarantined {
			t.Errorf("delete of a quarantined volume: %v", err)
		}
		if _, err := d.Client.ReleaseQuarantine(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		rig.WriteDevice(t, b.Device, 0, make([]byte, 4096))
	})
}

// expectNoWrites tries to change a device in the ways there are.
func expectNoWrites(t *testing.T, device string) {
	t.Helper()
	before := rig.ReadDevice(t, device, 0, 4096)
	f := rig.OpenDirect(t, device, os.O_WRONLY)
	defer f.Close()
	if _, err := f.WriteAt(rig.Aligned(t, 4096), 0); err == nil {
		t.Errorf("%s took a write", device)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096); err == nil {
		t.Errorf("%s was zeroed", device)
	}
	span := [2]uint64{0, 4096}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span))); errno == 0 {
		t.Errorf("%s was discarded", device)
	}
	if !bytes.Equal(rig.ReadDevice(t, device, 0, 4096), before) {
		t.Errorf("%s has changed", device)
	}
}

// swapUnder swaps a and b although a load has a open.
func (d *process) swapUnder(busy string) api.SwapResult {
	d.t.Helper()
	res, err := d.Client.Swap(d.t.Context(), api.SwapRequest{
		Pairs: []api.SwapPair{{A: "a", B: "b"}}, Busy: busy, AllowHolders: true,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return res
}

func (d *process) waitNoSnapshot(name string) {
	d.t.Helper()
	rig.WaitUntil(d.t, "the snapshot of volume "+name+" to go with its connection", func() bool { return !d.Show(name).Snapshot })
}

// reader reads one block after the other past the cache and counts the answers.
type reader struct {
	t                  *testing.T
	quit               chan struct{}
	done               chan struct{}
	reads, busy, other atomic.Int64
}

func startReader(t *testing.T, device string) *reader {
	t.Helper()
	r := &reader{t: t, quit: make(chan struct{}), done: make(chan struct{})}
	f := rig.OpenDirect(t, device, os.O_RDONLY)
	buf := rig.Aligned(t, 4096)
	go func() {
		defer close(r.done)
		defer f.Close()
		for i := int64(0); ; i++ {
			select {
			case <-r.quit:
				return
			default:
			}
			_, err := f.ReadAt(buf, i%1000*4096)
			switch {
			case err == nil:
				r.reads.Add(1)
			case errors.Is(err, unix.EBUSY):
				r.busy.Add(1)
			default:
				r.other.Add(1)
			}
		}
	}()
	return r
}

func (r *reader) waitReads(n int64) {
	r.t.Helper()
	want := r.reads.Load() + n
	rig.WaitUntil(r.t, "the reader to get on", func() bool { return r.reads.Load() >= want })
}

func (r *reader) stop() {
	close(r.quit)
	<-r.done
}
