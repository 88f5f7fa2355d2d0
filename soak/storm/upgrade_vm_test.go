//go:build vm

package storm

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/swapback/swapback/soak/rig"
)

// nextBuild is swapbackd once more, with another version; "make build" makes it.
const nextBuild = "swapbackd-next"

// TestUpgradeUnderLoad replaces swapbackd by another build and back, as
// "systemctl restart swapbackd" does after an upgrade of the package, while fio
// writes and verifies. Applications see a pause, which is measured, and no error.
func TestUpgradeUnderLoad(t *testing.T) {
	for _, volumes := range []int{2, 16} {
		t.Run(fmt.Sprintf("%d volumes", volumes), func(t *testing.T) { upgrade(t, volumes) })
	}
}

func upgrade(t *testing.T, volumes int) {
	kernel := rig.OpenKernelLog(t)
	d := rig.Start(t)
	builds := []string{nextBuild, d.Program}
	d.Pool()
	probed, loaded := d.Volume("probed", 8*rig.MiB), d.Volume("loaded", 64*rig.MiB)
	for i := range volumes - 2 {
		d.Volume(fmt.Sprintf("idle-%d", i), 8*rig.MiB)
	}
	p := startProber(t, probed.Device)
	load := rig.LoopFio(t, verify(loaded.Device, "--ioengine=io_uring", "--direct=1", "--iodepth=8", "--offset_increment=32m"))
	var pauses []time.Duration
	for round := range rig.Count(t, "SOAK_UPGRADES", 2) {
		before := version(t, d)
		d.WaitWrites("loaded", 50)
		p.reset()
		began := time.Now()
		d.Signal(syscall.SIGTERM)
		stopped := time.Since(began)
		if state := d.WaitEnd(); state.ExitCode() != 0 {
			t.Errorf("swapbackd ended with %v:\n%s", state, d.Log)
		}
		d.Program = builds[round%2]
		d.Run()
		ready := time.Since(began)
		d.WaitWrites("probed", 3)
		pauses = append(pauses, p.reset())
		t.Logf("%s: stopped after %v, answered after %v, longest request of an application %v", d.Program,
			stopped.Round(time.Millisecond), ready.Round(time.Millisecond), pauses[round].Round(time.Millisecond))
		if now := version(t, d); now == before {
			t.Errorf("swapbackd is %s before and after the upgrade", now)
		}
		d.Check()
	}
	runs, longest := load.Stop()
	t.Attr("pause", fmt.Sprintf("%v; longest of fio %v (%d runs)", rounded(pauses), longest.Round(time.Millisecond), runs))
	// On a machine whose clock counts instructions nothing depends on its host.
	if worst := slices.Max(pauses); os.Getenv("SWAPBACK_EXACT") != "" && worst >= time.Second {
		t.Errorf("an application waited %v for the upgrade, which docs/performance.md has as less than a second", worst)
	}
	p.stop()
	if err := p.err(); err != nil {
		t.Errorf("probe: %v", err)
	}
	for _, name := range []string{"probed", "loaded"} {
		if io := d.Show(name).IO; io.Errors != 0 {
			t.Errorf("volume %s: %+v", name, io)
		}
	}
	kernel.ExpectQuiet(t)
}

func rounded(list []time.Duration) []time.Duration {
	out := slices.Clone(list)
	for i := range out {
		out[i] = out[i].Round(time.Millisecond)
	}
	return out
}

func version(t *testing.T, d *rig.Daemon) string {
	t.Helper()
	info, err := d.Client.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.Version
}
