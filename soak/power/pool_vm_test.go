//go:build vm

package power

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/soak/power/logwrites"
	"github.com/swapback/swapback/soak/rig"
)

// TestPowerCutOfAPool cuts the power around every write to a label or the header
// of a metadata slot while a pool is made and deleted. The disks show a pool with
// what it had, or none; never one that can't be opened. Where there is none, one
// can be made.
func TestPowerCutOfAPool(t *testing.T) {
	disks := rig.Disks(t)
	disk := newLoggedDisk(t, "soakpool", disks[0], disks[1], members, memberSize)
	var j *journal
	if !t.Run("load", func(t *testing.T) { j = poolLife(t, disk) }) {
		return
	}
	disk.Close()
	log := disk.Log()
	b := newBench(t, j, log, uint64(rig.Count(t, "SOAK_SEED", 1)))
	points := aroundPools(t, log)
	left := map[string]int{}
	cuts, failed := 0, 0
	for i, at := range points {
		for survival := range survivals {
			patches := b.goTo(at, survival)
			if survival != nothing && len(patches) == 0 {
				continue // that is the same
			}
			cuts++
			every := len(points) / poolDaemons
			daemon := survival == nothing && i%every == every/2
			if b.cutOfPools(at, survival, daemon, left, patches) {
				continue
			}
			if failed++; failed == maxFailures {
				t.Fatalf("%d cuts failed: the others are left out", failed)
			}
		}
	}
	if at := b.scratch.FirstStray(); at >= 0 {
		t.Errorf("the cuts were not apart from each other: byte %d is of an earlier one", at)
	}
	t.Logf("SOAK_SEED=%d: %d entries, cuts at %d of them in %d ways, which left: %v", b.seed, len(log.Entries), len(points), cuts, left)
	for _, what := range []string{aPool, blank, halfMade} {
		if left[what] == 0 {
			t.Errorf("no cut left %s", what)
		}
	}
	t.Attr("cuts", fmt.Sprint(cuts))
}

// poolDaemons are the cuts of pools after which the whole daemon starts.
const poolDaemons = 2

// What the cuts of pools lead to.
const (
	aPool    = "a pool"
	blank    = "blank disks"
	halfMade = "disks that take a pool with force"
)

const noPool = "no pool"

// poolLife has the daemon make a pool with a volume and delete it.
func poolLife(t *testing.T, disk *loggedDisk) *journal {
	d := rig.StartWith(t, rig.Options{Disks: disk.Members})
	ctx, c := t.Context(), d.Client
	j := newJournal(disk, 0)
	j.first = world{text: noPool}
	operate := func(name string, do func() error) {
		j.operate(name, nil, func() {
			if err := do(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}, func() world {
			pools, err := c.Pools(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var volumes []api.Volume
			for _, p := range pools {
				if volumes, err = c.Volumes(ctx, p.Name); err != nil {
					t.Fatal(err)
				}
			}
			return poolWorld(len(pools), volumes)
		})
	}
	j.event()
	operate("pool create", func() error {
		_, err := c.CreatePool(ctx, api.CreatePoolRequest{Name: "tank", Disks: disk.Members, ExtentSize: rig.MiB})
		return err
	})
	operate("volume create", func() error {
		_, err := c.CreateVolume(ctx, api.CreateVolumeRequest{Name: "v", Size: volumeSize})
		return err
	})
	operate("pool delete", func() error { return c.DeletePool(ctx, "tank", true) })
	return j
}

func poolWorld(pools int, volumes []api.Volume) world {
	if pools == 0 {
		return world{text: noPool}
	}
	w := newWorld(volumes)
	w.text = fmt.Sprintf("%d pool with %d volumes\n%s", pools, len(volumes), w.text)
	return w
}

// aroundPools are the cuts before and behind every write to a label or the header
// of a slot, and those next to them.
func aroundPools(t *testing.T, log *logwrites.Log) []int {
	t.Helper()
	chosen := map[int]bool{}
	writes := 0
	for i, e := range log.Entries {
		covers := func(at int64) bool { return e.Offset%memberSize <= at && e.Offset%memberSize+e.Length > at }
		if !e.HasData() || !slices.ContainsFunc([]int64{labelAt, firstSlot, metadataSlot}, covers) {
			continue
		}
		writes++
		for at := max(i-1, 0); at <= min(i+2, len(log.Entries)); at++ {
			chosen[at] = true
		}
	}
	// On each member: it is wiped, gets a header and two labels, a header for the
	// volume; two labels when the pool is deleted, and the slots are wiped.
	if writes < members*(1+1+2+1+2+1) {
		t.Fatalf("there are only %d writes to labels and headers", writes)
	}
	return slices.Sorted(slices.Values(keys(chosen)))
}

// cutOfPools looks at what a power cut before entry at has left, with the library
// or the whole daemon. It counts in left what that was, and reports whether all
// was well.
func (b *bench) cutOfPools(at, survival int, daemon bool, left map[string]int, patches []logwrites.Patch) bool {
	worlds, doing := b.journal.at(b.next, b.seen).worlds()
	find := b.findPool
	if daemon {
		find = b.findWithDaemon
	}
	text, problems := find()
	var want []string
	for _, w := range worlds {
		want = append(want, w.text)
	}
	if !slices.Contains(want, text) {
		problems = append(problems, fmt.Sprintf("the disks show %q, wanted one of %q", text, want))
	}
	if text == noPool && len(problems) == 0 && !daemon {
		was, err := b.makePool()
		if err == nil && was == halfMade && !strings.HasPrefix(doing, "during pool") {
			err = errors.New("nothing was under way, and a pool can't be made without force")
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("making a pool where there is none: %v", err))
		}
		left[was]++
	} else if text != noPool {
		left[aPool]++
	}
	b.machineOff()
	b.scratch.Reset(patches, false)
	if len(problems) == 0 {
		return true
	}
	b.t.Errorf("power cut before entry %d of %d (%s), of the cache survived: %s (SOAK_SEED=%d):\n  %s",
		at, len(b.log.Entries), doing, survivalNames[survival], b.seed, strings.Join(problems, "\n  "))
	return false
}

// findPool looks for a pool and opens it, as the daemon does when it starts.
func (b *bench) findPool() (text string, problems []string) {
	ctx := b.t.Context()
	found, err := dmswap.Scan(ctx, dmswap.ScanOptions{Disks: b.scratch.Members})
	if err != nil {
		return "", []string{err.Error()}
	}
	var volumes []api.Volume
	for _, f := range found {
		if len(f.Problems) > 0 || len(f.Missing) > 0 {
			problems = append(problems, fmt.Sprintf("pool %s on %v: %q, missing %v", f.Name, f.Disks, f.Problems, f.Missing))
			continue
		}
		p, err := dmswap.Open(ctx, dmswap.OpenOptions{Disks: f.Disks, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			problems = append(problems, fmt.Sprintf("the pool does not open: %v", err))
			continue
		}
		for _, v := range p.Volumes() {
			volumes = append(volumes, asServed(v))
			problems = append(problems, b.lookAtHead(v.Name, v.Device)...)
		}
		if report, err := p.Check(ctx); err != nil || !report.OK() {
			problems = append(problems, fmt.Sprintf("pool check: %v %q", err, report.Problems))
		}
		if err := p.Close(); err != nil {
			problems = append(problems, err.Error())
		}
	}
	return poolWorld(len(found), volumes).text, problems
}

// findWithDaemon does the same with the whole daemon.
func (b *bench) findWithDaemon() (text string, problems []string) {
	ok := b.t.Run(fmt.Sprintf("daemon before entry %d", b.next), func(t *testing.T) {
		d := rig.StartWith(t, rig.Options{Disks: b.scratch.Members})
		info, err := d.Client.Info(t.Context())
		if err != nil || len(info.Failed) > 0 {
			t.Fatalf("pools that were not opened: %+v, %v", info.Failed, err)
		}
		var volumes []api.Volume
		for _, name := range info.Pools {
			if volumes, err = d.Client.Volumes(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		text = poolWorld(len(info.Pools), volumes).text
		d.Check()
	})
	if !ok {
		problems = []string{"the daemon's test failed"}
	}
	return text, problems
}

// makePool makes a pool on disks that show none, with force only if they are
// refused for what is left of one, and deletes it. It returns what they were.
func (b *bench) makePool() (was string, err error) {
	ctx := b.t.Context()
	opt := dmswap.CreateOptions{Name: "again", Disks: b.scratch.Members, ExtentSize: rig.MiB}
	was = blank
	p, err := dmswap.Create(ctx, opt)
	var used *dmswap.DiskInUseError
	if errors.As(err, &used) {
		was = halfMade
		if len(used.Found) != 1 || !strings.Contains(used.Found[0], "was being made or deleted") {
			return was, fmt.Errorf("it is refused, without what is left there: %w", err)
		}
		opt.Force = true
		p, err = dmswap.Create(ctx, opt)
	}
	if err != nil {
		return was, err
	}
	if report, err := p.Check(ctx); err != nil || !report.OK() {
		return was, errors.Join(fmt.Errorf("pool check: %v %q", err, report.Problems), p.Destroy(ctx))
	}
	return was, p.Destroy(ctx)
}
