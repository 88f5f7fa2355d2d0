//go:build vm

package power

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/swapback/swapback/soak/rig"
)

const (
	members    = 2
	memberSize = 64 * rig.MiB
	// What lies before the extents: the label, and two slots of 1 MiB of which the
	// pool of this test uses little.
	metadataSize = 3 * rig.MiB
	labelAt      = 4 << 10
	firstSlot    = 8 << 10
	metadataSlot = firstSlot + 1<<20
	changesAt    = metadataSlot + 1<<20
	metadataUsed = 64 << 10
	// daemonPoints are the cuts after which the whole daemon starts.
	daemonPoints = 12
	// filesEvery is how often the filesystem is looked at as well.
	filesEvery  = 20
	maxFailures = 5
)

func TestPowerCut(t *testing.T) {
	seed := uint64(rig.Count(t, "SOAK_SEED", 1))
	random := rand.New(rand.NewPCG(seed, 0))
	disks := rig.Disks(t)
	disk := newLoggedDisk(t, "soakpower", disks[0], disks[1], members, memberSize)
	var j *journal
	if !t.Run("load", func(t *testing.T) { j = runLoad(t, disk, random, rig.Count(t, "SOAK_ROUNDS", 2)) }) {
		return
	}
	disk.Close()
	log := disk.Log()
	b := newBench(t, j, log, seed)
	points := b.choose(random, rig.CountOn(t, "SOAK_POINTS", 320, 60))
	t.Logf("SOAK_SEED=%d: %d entries in %d MiB, %d events, %d operations, %d writes, %d files; %d cuts",
		seed, len(log.Entries), log.Size/rig.MiB, j.events, len(j.ops), len(j.records), len(j.files), len(points))
	failed := 0
	for n, at := range points {
		if b.cut(at, n, len(points)/daemonPoints) {
			continue
		}
		if failed++; failed == maxFailures {
			t.Fatalf("%d cuts failed: the other %d are left out", failed, len(points)-n-1)
		}
	}
	t.Logf("cuts by what survived in the cache: %v", b.survived)
	t.Attr("cuts", fmt.Sprint(len(points)))
	t.Attr("late", fmt.Sprint(b.late))
	t.Run("a disk that lies is seen", func(t *testing.T) { seesLies(t, j, log) })
	t.Run("a server that drops flushes is seen", func(t *testing.T) { seesDroppedFlushes(t, j, log) })
}
