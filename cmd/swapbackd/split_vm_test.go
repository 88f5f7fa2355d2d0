//go:build vm

package main

import (
	"bytes"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/swapback/swapback/soak/rig"
)

// restoreCommands finds what the message about a split pool says to do.
var restoreCommands = regexp.MustCompile(`swapback (pool metadata dump --disk OTHER -o FILE); swapback (pool metadata restore FILE --disk (\S+) --force)\.`)

// TestSplitPool uses each half of a pool without the other. With both the pool is
// refused and nothing is written on them, until what the message says is done, the
// one way and the other way round.
func TestSplitPool(t *testing.T) {
	disks := []string{rig.Loop(t, 96*rig.MiB), rig.Loop(t, 96*rig.MiB)}
	d := rig.StartWith(t, rig.Options{Disks: disks, Args: []string{"--wait-for-members", "1s", "--on-exit=stop"}})
	d.Pool()
	names := make([]string, 2) // by member
	for _, name := range []string{"a", "b"} {
		names[member(t, d.Volume(name, 16*rig.MiB))] = name
	}
	data := [][]byte{rig.RandomBytes(1, int(rig.MiB)), rig.RandomBytes(2, int(rig.MiB))}
	for i, half := range []string{"half0", "half1"} {
		d.Signal(syscall.SIGTERM)
		d.Disks = disks[i : i+1]
		d.Run()
		rig.WriteDevice(t, d.Show(names[i]).Device, 0, data[i])
		d.Volume(half, 4*rig.MiB)
	}
	d.Signal(syscall.SIGTERM)
	heads := func() (list [][]byte) {
		for _, disk := range disks {
			list = append(list, rig.ReadDevice(t, disk, 0, 8192+int(2*rig.MiB))) // label and slots
		}
		return list
	}
	before := heads()
	for _, right := range []int{0, 1} {
		for i, disk := range disks {
			rig.WriteDevice(t, disk, 0, before[i])
		}
		d.Disks = disks
		d.Run()
		info, err := d.Client.Info(t.Context())
		if err != nil || len(info.Failed) != 1 || info.Failed[0].Name != "tank" || !slices.Equal(info.Failed[0].Disks, disks) {
			t.Fatalf("pools that were not opened: %+v, %v", info.Failed, err)
		}
		why := info.Failed[0].Error
		if !strings.Contains(why, "pool tank is split, its halves were used without each other: disk ") || !strings.Contains(why, "decide which half is right") {
			t.Errorf("the pool was refused: %s", why)
		}
		refused := "pool tank (" + strings.Join(disks, ", ") + ") could not be opened: " + why
		d.CLI(0, []string{refused}, "pool", "list")
		d.CLI(1, []string{"is split", "decide which half is right"}, "pool", "rejoin", "tank")
		if !slices.EqualFunc(heads(), before, bytes.Equal) {
			t.Fatal("the disks of a pool that was refused were written to")
		}

		say := restoreCommands.FindStringSubmatch(why)
		if say == nil {
			t.Fatalf("the message names no commands: %s", why)
		}
		// For one of the halves the disk that is named is the right one.
		words := strings.NewReplacer("OTHER", disks[right], say[3], disks[1-right], "FILE", filepath.Join(t.TempDir(), "half.meta"))
		d.CLI(0, []string{"generation"}, strings.Fields(words.Replace(say[1]))...)
		restored := d.CLI(0, []string{"metadata of pool tank is restored"},
			append(strings.Fields(words.Replace(say[2])), "--yes", "--keep-dir", t.TempDir())...)
		if _, open, ok := strings.Cut(restored, "or say: swapback "); ok {
			d.CLI(0, []string{"all of its 2 disks"}, strings.Fields(open)...)
		} else {
			t.Errorf("how the pool is opened is not said: %s", restored)
		}

		d.Check()
		for i, name := range names {
			// The other half's extents are where they were, and hold what they held.
			if got := rig.ReadDevice(t, d.Show(name).Device, 0, len(data[i])); !bytes.Equal(got, data[i]) {
				t.Errorf("half %d is right: byte %d of volume %s is not", right, rig.FirstDifference(got, data[i]), name)
			}
		}
		list, err := d.Client.Volumes(t.Context(), "tank")
		if err != nil || len(list) != 3 {
			t.Errorf("volumes %+v, %v", list, err)
		}
		d.Show([]string{"half0", "half1"}[right])
		if info, err := d.Client.Info(t.Context()); err != nil || len(info.Failed) != 0 {
			t.Errorf("pools that were not opened: %+v, %v", info.Failed, err)
		}
		d.Signal(syscall.SIGTERM)
	}
	d.Run()
	d.Check()
}
