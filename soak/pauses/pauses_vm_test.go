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

// pauses are made all at once, each on volumes of its own; 0 is as short as it gets.
// SOAK_PAUSES="0 75s" has others made.
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

	var volumes []*volume
	for i, pause := range pauses(t) {
		v := &volume{t: t, d: d, pause: pause, name: fmt.Sprint("a", i), other: fmt.Sprint("b", i)}
		v.begin()
		volumes = append(volumes, v)
	}
	for _, v := range volumes {
		v.load = d.StartFio(v.name, load(v.device))
	}
	for _, v := range volumes {
		d.WaitHostIO(v.name, v.load, 20)
		v.swap(order)
	}
	// In the middle of the longest: what a host asks a controller passes no gate.
	longest := volumes[len(volumes)-1]
	select {
	case <-longest.swapped:
		t.Errorf("the swap of %s is over already: %+v, %v", longest.name, longest.result, longest.err)
	case <-time.After(time.Minute):
	}
	longest.look(native)
	for _, v := range volumes {
		v.end()
	}
	kernel.ExpectQuiet(t)
}

// load reads what was written before, the same on both volumes of a pair, and verifies it;
// and writes elsewhere. It is slow: what counts is that there is always a command under way.
func load(device string) []string {
	return []string{
		"--filename=" + device, "--direct=1", "--ioengine=io_uring", "--iodepth=4", "--bs=4k", "--rate_iops=20", "--time_based", "--runtime=3600",
		"--continue_on_error=all", "--output-format=json",
		"--name=read", "--rw=randread", "--size=4m", "--verify=crc32c",
		"--name=write", "--rw=randwrite", "--offset=8m", "--size=4m",
	}
}

// volume is one that a host uses, with the one that it is swapped with.
type volume struct {
	t           *testing.T
	d           *rig.Daemon
	pause       time.Duration
	name, other string
	export      api.Export
	device      string
	load        *rig.Fio
	swapped     chan struct{}
	result      api.SwapResult
	err         error
}

func (v *volume) begin() {
	v.t.Helper()
	for _, name := range []string{v.name, v.other} {
		rig.RunFio(v.t, []string{
			"--name=fill", "--filename=" + v.d.Volume(name, size).Device, "--direct=1", "--ioengine=io_uring", "--iodepth=4", "--bs=4k",
			"--rw=write", "--size=4m", "--verify=crc32c", "--do_verify=0",
		})
	}
	v.export = v.d.Export(v.name)
	v.device = v.d.Connect(v.export, "-i", "1")
	// That somebody looks at the log does not make it a host that heeds it.
	for ctrl := range rig.Controllers(v.export.NQN) {
		rig.Tool(v.t, "nvme", "ana-log", "/dev/"+ctrl)
	}
}

// swap begins the swap, and returns when it waits behind the closed gates.
func (v *volume) swap(order string) {
	v.t.Helper()
	if v.pause > 0 {
		// Written whole, for the daemon may look at any time.
		if err := os.WriteFile(order+".new", fmt.Appendf(nil, "swap: drained=%v", v.pause), 0o600); err != nil {
			v.t.Fatal(err)
		}
		if err := os.Rename(order+".new", order); err != nil {
			v.t.Fatal(err)
		}
	}
	v.swapped = make(chan struct{})
	go func() {
		defer close(v.swapped)
		v.result, v.err = v.d.Client.Swap(v.t.Context(), api.SwapRequest{
			Pairs: []api.SwapPair{{A: v.name, B: v.other}}, AllowHolders: true, HoldFor: 3600,
		})
	}()
	if v.pause == 0 {
		<-v.swapped
		return
	}
	rig.WaitUntil(v.t, "the swap of "+v.name+" to have the gates closed", func() bool {
		_, err := os.Stat(order)
		return err != nil
	})
}

// look is for a pause that has lasted for longer than hosts wait.
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

// end waits for the swap, wants I/O to go on after it, and what is written then to be right.
func (v *volume) end() {
	v.t.Helper()
	<-v.swapped
	if v.err != nil {
		v.t.Fatalf("swap of %s: %v", v.name, v.err)
	}
	v.d.WaitHostIO(v.name, v.load, 20)
	job := v.load.Stop()
	longest := time.Duration(max(job.Read.Lat.Max, job.Write.Lat.Max)).Round(time.Millisecond)
	v.t.Logf("pause of %v: longest latency %v, %d held, %d refused", v.pause, longest, v.result.Held, v.result.Refused)
	if job.TotalErr != 0 {
		v.t.Errorf("pause of %v: fio saw %d errors, the first errno %d", v.pause, job.TotalErr, job.FirstError)
	}
	if longest < v.pause/2 || v.pause > 0 && v.result.Held == 0 {
		v.t.Errorf("pause of %v: fio has seen no more than %v, and %d commands were held", v.pause, longest, v.result.Held)
	}
	rig.RunFio(v.t, rig.HostJob(v.device, "64k", "--rw=randwrite", "--offset_increment=1m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"))
	v.d.Leave(v.name, v.export)
}
