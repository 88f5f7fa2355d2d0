//go:build vm

package network

import (
	"bytes"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// TestHostSeesNoError: one volume is written and verified by the host, another is read
// and verified while it is swapped, a third pair is swapped beside them, and the daemon
// is killed under all that.
func TestHostSeesNoError(t *testing.T) {
	d, h := start(t)
	d.Volume("w", 64*MiB)
	a, b := d.Volume("a", 32*MiB), d.Volume("b", 32*MiB)
	d.Volume("c", 16*MiB)
	d.Volume("d", 16*MiB)
	ew, ea := d.Export("w"), d.Export("a")

	found := h.run("nvme", "discover", "-t", "tcp", "-a", d.own, "-s", "4420")
	if !strings.Contains(found, ew.NQN) || !strings.Contains(found, ea.NQN) || strings.Count(found, "subnqn:") != 3 { // with the discovery's own
		t.Errorf("what the host discovers:\n%s", found)
	}
	devW, devA := h.connect(ew, "-i", "2"), h.connect(ea, "-i", "1")

	// The pair shows equal content, so what the host reads has to be right whichever it is.
	const pattern = 8 * MiB
	h.run(fio([]string{"--name=fill", "--filename=" + devA, "--rw=write", "--bs=64k", "--size=8m", "--verify=crc32c", "--do_verify=0", "--end_fsync=1"})...)
	data := rig.ReadDevice(t, a.Device, 0, int(pattern))
	rig.WriteDevice(t, b.Device, 0, data)
	reads := h.loop("--name=read", "--filename="+devA, "--rw=randread", "--bs=64k", "--size=8m", "--iodepth=4", "--verify=crc32c", "--verify_fatal=1")
	writes := h.loop("--name=write", "--filename="+devW, "--rw=randwrite", "--bsrange=4k-64k", "--blockalign=4k", "--size=2m", "--offset_increment=16m",
		"--numjobs=2", "--iodepth=8", "--group_reporting=1", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1")

	swap := func(x, y string, over bool) {
		t.Helper()
		res, err := d.Client.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: x, B: y}}, AllowHolders: over})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s and %s: pause %.1f ms, %d held", x, y, res.Pause*1e3, res.Held)
	}
	if _, err := d.Client.Swap(t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "b"}}}); api.CodeOf(err) != api.CodeInUse || !strings.Contains(err.Error(), rig.NVMeHost) {
		t.Errorf("a swap under a host: %v", err)
	}
	for range 3 {
		d.WaitHostIO("a", reads, 20)
		d.WaitHostIO("w", writes, 20)
		swap("a", "b", true)
		swap("c", "d", false)
	}
	for range 2 {
		d.WaitHostIO("a", reads, 20)
		d.WaitHostIO("w", writes, 50)
		d.Kill()
		d.Run()
	}
	d.WaitHostIO("a", reads, 20)
	d.WaitHostIO("w", writes, 50)
	swap("a", "b", true)
	d.WaitHostIO("a", reads, 20)
	t.Logf("%d runs of the reading fio, %d of the writing one", reads.finish(), writes.finish())

	for _, name := range []string{"a", "b"} {
		if got := rig.ReadDevice(t, d.Show(name).Device, 0, int(pattern)); !bytes.Equal(got, data) {
			t.Errorf("volume %s shows other data, first at byte %d", name, rig.FirstDifference(got, data))
		}
	}
	h.leave(d, ew)
	h.leave(d, ea)
}
