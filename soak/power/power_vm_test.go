//go:build vm

package power

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/soak/power/logwrites"
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
	t.Logf("SOAK_SEED=%d: %d entries, %d events, %d operations, %d writes, %d files; %d cuts",
		seed, len(log.Entries), j.events, len(j.ops), len(j.records), len(j.files), len(points))
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
}

// firstTrace is the first operation that changed what the pool shows after a
// write with FUA was acknowledged, and the last such write before it.
func firstTrace(t *testing.T, j *journal) (op *operation, write *record) {
	for i := 1; i < len(j.ops); i++ {
		if j.ops[i].after.text == j.ops[i-1].after.text {
			continue // a snapshot leaves no trace
		}
		for _, r := range j.records {
			if r.stream == 0 && !r.met && r.ack > 0 && r.ack < j.ops[i].begin {
				write = r
			}
		}
		if write != nil {
			return &j.ops[i], write
		}
	}
	t.Fatal("no operation that changed something came behind a write with FUA")
	return nil, nil
}

// seesLies leaves out of the log what was acknowledged, as a disk does that
// ignores FUA: the test has to find it missing.
func seesLies(t *testing.T, j *journal, log *logwrites.Log) {
	op, write := firstTrace(t, j)
	for _, tt := range []struct {
		name  string
		event int
		lie   func(e logwrites.Entry, data []byte) bool
		want  string
	}{
		{"metadata", op.end, isHeader, "the pool shows"},
		{"data", write.ack, func(e logwrites.Entry, data []byte) bool {
			return e.Has(logwrites.FUA) && len(data) == blockSize && bytes.Equal(data[:8], binary.LittleEndian.AppendUint64(nil, write.id))
		}, "acknowledged as durable"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mark := slices.IndexFunc(log.Entries, func(e logwrites.Entry) bool { return e.Text == eventText(tt.event) })
			from := mark
			if tt.name == "metadata" {
				from = slices.IndexFunc(log.Entries, func(e logwrites.Entry) bool { return e.Text == eventText(op.begin) })
			} else {
				from = 0
			}
			lying := *log
			lying.Entries = nil
			for i, e := range log.Entries[:mark+1] {
				if i > from && e.HasData() && e.Has(logwrites.FUA) {
					data, err := log.Data(e)
					if err != nil {
						t.Fatal(err)
					}
					if tt.lie(e, data) {
						continue
					}
				}
				lying.Entries = append(lying.Entries, e)
			}
			if left := mark + 1 - len(lying.Entries); left == 0 {
				t.Fatal("there was nothing to leave out")
			}
			b := newBench(t, j, &lying, 0)
			patches := b.goTo(len(lying.Entries), inOrder)
			problems := b.openPool(false)
			b.scratch.Reset(patches, true)
			if text := strings.Join(problems, "\n"); !strings.Contains(text, tt.want) {
				t.Errorf("the lie was not seen: %q", text)
			}
		})
	}
}
