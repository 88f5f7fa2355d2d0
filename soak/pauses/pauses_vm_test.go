//go:build vm && failpoint

package pauses

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// pauses are made one after another; 0 is as short as it gets. SOAK_PAUSES="0 75s" has
// others made.
func pauses(t *testing.T) (list []time.Duration) {
	text := os.Getenv("SOAK_PAUSES")
	if text == "" {
		text = "0 1s 1m 5m"
	}
	for _, field := range strings.Fields(text) {
		d, err := time.ParseDuration(field)
		if err != nil {
			t.Fatalf("SOAK_PAUSES: %v", err)
		}
		list = append(list, d)
	}
	return list
}

const size = 16 * rig.MiB

// TestPauses: a swap may take its time, and no host sees an error. Hosts with native
// multipath are told by ANA; others can only be made to wait.
func TestPauses(t *testing.T) {
	for _, native := range []bool{true, false} {
		t.Run(fmt.Sprintf("multipath %v", native), func(t *testing.T) { swapsWithPauses(t, native) })
	}
}

// patience is a little longer than the daemon waits before it turns hosts away that can't
// be told of a pause: they are connecting then, again and again.
const patience = 55 * time.Second

func swapsWithPauses(t *testing.T, native bool) {
	rig.SetNativeMultipath(t, native)
	rig.Tool(t, "modprobe", "nvme-tcp")
	program, err := filepath.Abs("../../build/failpoint/swapbackd")
	if err != nil {
		t.Fatal(err)
	}
	order := filepath.Join(t.TempDir(), "order")
	d := rig.StartWith(t, rig.Options{Program: program, Args: []string{"--nvme-listen", "127.0.0.1"}, Env: []string{"SWAPBACK_FAILPOINT=@" + order}})
	d.Pool()
	kernel := rig.OpenKernelLog(t)
	v := &volume{t: t, d: d, order: order}
	v.begin()
	for _, pause := range pauses(t) {
		v.swap(pause, native)
	}
	v.end()
	kernel.ExpectQuiet(t)
}

// load reads what was written before, the same on both volumes of a pair, and verifies it;
// and writes elsewhere. It is slow: what counts is that there is always a command under way.
func load(device string) []string {
	return []string{
		"--filename=" + device, "--direct=1", "--ioengine=io_uring", "--iodepth=4", "--bs=4k", "--rate_iops=10", "--time_based", "--runtime=3600",
		"--continue_on_error=all", "--output-format=json",
		"--name=read", "--rw=randread", "--size=4m", "--verify=crc32c",
		"--name=write", "--rw=randwrite", "--offset=8m", "--size=4m",
	}
}

// volume is one that a host uses, and is swapped with another.
type volume struct {
	t      *testing.T
	d      *rig.Daemon
	order  string // file of the daemon's failpoint
	export api.Export
	device string
}

func (v *volume) begin() {
	v.t.Helper()
	args := []string{"--direct=1", "--ioengine=io_uring", "--iodepth=4", "--bs=4k", "--rw=write", "--size=4m", "--verify=crc32c", "--do_verify=0"}
	for _, name := range []string{"a", "b"} {
		args = append(args, "--name="+name, "--filename="+v.d.Volume(name, size).Device)
	}
	rig.RunFio(v.t, args)
	v.export = v.d.Export("a")
	v.device = v.d.Connect(v.export, "-i", "1")
	// That somebody looks at the log does not make it a host that heeds it.
	for ctrl := range rig.Controllers(v.export.NQN) {
		rig.Tool(v.t, "nvme", "ana-log", "/dev/"+ctrl)
	}
}

// swap swaps the volume under load, with the gates closed for as long as the pause.
func (v *volume) swap(pause time.Duration, native bool) {
	v.t.Helper()
	fio := v.d.StartFio("a", load(v.device))
	v.d.WaitHostIO("a", fio, 20)
	if pause > 0 {
		// Written whole, for the daemon may look at any time.
		if err := os.WriteFile(v.order+".new", fmt.Appendf(nil, "swap: drained=%v", pause), 0o600); err != nil {
			v.t.Fatal(err)
		}
		if err := os.Rename(v.order+".new", v.order); err != nil {
			v.t.Fatal(err)
		}
	}
	var result api.SwapResult
	swapped := make(chan error, 1)
	go func() {
		var err error
		result, err = v.d.Client.Swap(v.t.Context(), api.SwapRequest{
			Pairs: []api.SwapPair{{A: "a", B: "b"}}, AllowHolders: true, HoldFor: 3600,
		})
		swapped <- err
	}()
	if pause > 2*patience {
		select {
		case err := <-swapped:
			v.t.Fatalf("the swap with a pause of %v is over already: %+v, %v", pause, result, err)
		case <-time.After(patience):
		}
		v.look(native)
	}
	if err := <-swapped; err != nil {
		v.t.Fatalf("swap with a pause of %v: %v", pause, err)
	}
	v.d.WaitHostIO("a", fio, 20)
	job := fio.Stop()
	longest := time.Duration(max(job.Read.Lat.Max, job.Write.Lat.Max)).Round(time.Millisecond)
	v.t.Logf("pause of %v: longest latency %v, %d held, %d refused", pause, longest, result.Held, result.Refused)
	if job.TotalErr != 0 {
		v.t.Errorf("pause of %v: fio saw %d errors, the first errno %d", pause, job.TotalErr, job.FirstError)
	}
	if longest < pause/2 || pause > 0 && result.Held == 0 {
		v.t.Errorf("pause of %v: fio has seen no more than %v, and %d commands were held", pause, longest, result.Held)
	}
}

// look is for a pause that has lasted for longer than hosts wait: what a host asks a
// controller passes no gate.
func (v *volume) look(native bool) {
	v.t.Helper()
	states := slices.Collect(maps.Values(rig.Controllers(v.export.NQN)))
	if !native {
		if !slices.Equal(states, []string{"connecting"}) {
			v.t.Errorf("a host that can't be told of the pause has its controllers in state %q", states)
		}
		return
	}
	if !slices.Equal(states, []string{"live"}) {
		v.t.Errorf("a host that was told of the pause has its controllers in state %q", states)
	}
	for ctrl := range rig.Controllers(v.export.NQN) {
		if out := rig.Tool(v.t, "nvme", "ana-log", "/dev/"+ctrl); !strings.Contains(out, "inaccessible") {
			v.t.Errorf("the log of asymmetric access:\n%s", out)
		}
		rig.Tool(v.t, "nvme", "id-ctrl", "/dev/"+ctrl)
		rig.Tool(v.t, "nvme", "id-ns", "/dev/"+ctrl, "-n", "1")
	}
}

// end wants what is written after all that to be right.
func (v *volume) end() {
	v.t.Helper()
	rig.RunFio(v.t, rig.HostJob(v.device, "64k", "--rw=randwrite", "--offset_increment=1m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"))
	v.d.Leave("a", v.export)
}
