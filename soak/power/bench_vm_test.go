//go:build vm

package power

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/soak/power/logwrites"
	"github.com/swapback/swapback/soak/rig"
)

// What of the volatile writes has reached the disk when the power is cut.
const (
	nothing  = iota
	inOrder  // all that the log has so far: its prefix
	byChance // any sector of them may have
	survivals
)

var survivalNames = [survivals]string{"nothing", "in order", "by chance"}

// bench holds a log and what it takes to look at its states, one after the
// other.
type bench struct {
	t        *testing.T
	seed     uint64
	journal  *journal
	log      *logwrites.Log
	scratch  *scratch
	replay   *logwrites.Replay
	random   *rand.Rand // of byChance
	buffer   []byte
	survived map[string]int

	late int // how many writes the log has behind their acknowledgement

	seen map[int]bool // events before the cut
	next int          // entries that seen knows
	mark string       // the last one
}

func newBench(t *testing.T, j *journal, log *logwrites.Log, seed uint64) *bench {
	s := newScratch(t, members, memberSize)
	b := &bench{
		t: t, seed: seed, journal: j, log: log, scratch: s,
		replay: logwrites.NewReplay(log, members*memberSize, s.Settle),
		random: rand.New(rand.NewPCG(seed, 1)), buffer: rig.Aligned(t, int(volumeSize)), survived: map[string]int{}, seen: map[int]bool{},
	}
	t.Cleanup(b.machineOff) // before the disks go
	var err error
	if b.late, err = j.setDue(log); err != nil {
		t.Error(err)
	}
	return b
}

func eventText(n int) string { return fmt.Sprintf("e%d", n) }

// choose picks cuts, in the order of the log: before and after every commit of
// metadata and every operation's begin and end, and for the rest half around
// marks of acknowledged writes and half anywhere. A cut at n is before entry n.
func (b *bench) choose(random *rand.Rand, count int) []int {
	var first, last int
	chosen := map[int]bool{}
	var acks []int
	operations := map[string]bool{}
	for _, op := range b.journal.ops {
		operations[eventText(op.begin)], operations[eventText(op.end)] = true, true
	}
	for i, e := range b.log.Entries {
		switch {
		case e.Text == eventText(1):
			first = i + 1
		case e.Text == eventText(b.journal.events):
			last = i + 1
		case operations[e.Text]:
			chosen[i], chosen[i+1] = true, true
		case e.Has(logwrites.Mark):
			acks = append(acks, i, i+1)
		case e.HasData() && e.Offset%memberSize < metadataSize:
			data, err := b.log.Data(e)
			if err != nil {
				b.t.Fatal(err)
			}
			if !isHeader(e, data) {
				continue
			}
			chosen[i], chosen[i+1] = true, true
			if !e.Has(logwrites.FUA) {
				// A flush of somebody else hides that at most cuts.
				b.t.Errorf("entry %d: the header of a commit was written without FUA", i)
			}
		}
	}
	if first == 0 || last <= first {
		b.t.Fatalf("the log has no marks: %d entries", len(b.log.Entries))
	}
	within := func(list []int) []int {
		slices.Sort(list)
		return slices.DeleteFunc(list, func(i int) bool { return i < first || i > last })
	}
	list := within(keys(chosen))
	if most := count * 2 / 3; len(list) > most {
		random.Shuffle(len(list), func(i, k int) { list[i], list[k] = list[k], list[i] })
		list = list[:most]
	}
	acks = within(acks)
	for n := 0; len(list) < count; n++ {
		if n%2 == 0 && len(acks) > 0 {
			list = append(list, acks[random.IntN(len(acks))])
		} else {
			list = append(list, first+random.IntN(last-first+1))
		}
	}
	slices.Sort(list)
	return list
}

func keys(m map[int]bool) (list []int) {
	for k := range m {
		list = append(list, k)
	}
	return list
}

// isHeader tells whether a write is the header of a metadata slot, the point of
// no return of a commit on its member.
func isHeader(e logwrites.Entry, data []byte) bool {
	return e.Offset%memberSize < metadataSize && bytes.HasPrefix(data, []byte("SWAPMETA"))
}

// goTo brings the scratch disk to a cut.
func (b *bench) goTo(at, survival int) []logwrites.Patch {
	b.t.Helper()
	for ; b.next < at; b.next++ {
		e := b.log.Entries[b.next]
		if !e.Has(logwrites.Mark) {
			continue
		}
		b.mark = e.Text
		var n int
		if _, err := fmt.Sscanf(e.Text, "e%d", &n); err == nil {
			b.seen[n] = true
		}
	}
	err := b.replay.Advance(at)
	var patches []logwrites.Patch
	if err == nil {
		switch survival {
		case inOrder:
			patches, err = b.replay.Cached()
		case byChance:
			patches, err = b.replay.Survivors(func() bool { return b.random.IntN(2) == 0 })
		}
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.scratch.Survive(patches)
	return patches
}

// cut cuts the power before entry at and looks at what is there. It is the nth
// cut; every so many the whole daemon starts. It reports whether all was well.
func (b *bench) cut(at, n, daemonEvery int) bool {
	survival := n % survivals
	patches := b.goTo(at, survival)
	b.survived[survivalNames[survival]]++
	var problems []string
	all := true
	switch {
	case n%daemonEvery == daemonEvery/2:
		b.machineOff()
		problems = b.startDaemon(at)
	case n%filesEvery == 0:
		b.machineOff()
		problems = b.openPool(true)
	default:
		all = false
		// The devices are those of the cut before, as if only the disks had lost
		// power: making them is most of the time that a cut takes.
		problems = b.openPool(false)
	}
	b.scratch.Reset(patches, all)
	if n%filesEvery == 1 {
		// Opening the pool may have changed metadata, and nothing else.
		if at := b.scratch.FirstStray(); at >= 0 {
			problems = append(problems, fmt.Sprintf("opening the pool has written to byte %d of the disks", at))
			b.scratch.Reset(nil, true)
		}
	}
	if len(problems) == 0 {
		return true
	}
	_, doing := b.journal.at(b.next, b.seen).worlds()
	b.t.Errorf("power cut before entry %d of %d, the last mark is %q (%s), of the cache survived: %s (SOAK_SEED=%d):\n  %s",
		at, len(b.log.Entries), b.mark, doing, survivalNames[survival], b.seed, strings.Join(problems, "\n  "))
	return false
}

// machineOff takes away the devices that were made when the pool was opened.
func (b *bench) machineOff() {
	b.t.Helper()
	control, err := dm.Open()
	if err != nil {
		b.t.Fatal(err)
	}
	defer control.Close()
	list, err := control.List()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, d := range list {
		if strings.HasPrefix(d.UUID, "SWAPBACK-") {
			if err := control.Remove(dm.ByUUID(d.UUID), false); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

// openPool opens the pool with the library and returns what is wrong with it.
func (b *bench) openPool(files bool) (problems []string) {
	ctx := b.t.Context()
	p, err := dmswap.Open(ctx, dmswap.OpenOptions{Disks: b.scratch.Members, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return []string{fmt.Sprintf("the pool does not open: %v", err)}
	}
	defer func() {
		if err := p.Close(); err != nil {
			problems = append(problems, err.Error())
		}
	}()
	var volumes []api.Volume
	for _, v := range p.Volumes() {
		s := asServed(v)
		s.Device = v.Device
		volumes = append(volumes, s)
	}
	problems = b.look(volumes, files)
	report, err := p.Check(ctx)
	if err != nil || !report.OK() {
		problems = append(problems, fmt.Sprintf("pool check: %v %q", err, report.Problems))
	}
	return problems
}

// startDaemon has the whole daemon serve the pool, looks at the volumes through
// their block devices, and goes on working with them.
func (b *bench) startDaemon(at int) (problems []string) {
	ok := b.t.Run(fmt.Sprintf("daemon before entry %d", at), func(t *testing.T) {
		d := rig.StartWith(t, rig.Options{Disks: b.scratch.Members})
		list, err := d.Client.Volumes(t.Context(), "tank")
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range list {
			if v.Device == "" {
				list[i].Device = v.Backend // it had not been attached yet
			}
		}
		for _, p := range b.look(list, true) {
			t.Error(p)
		}
		d.Check()
		d.Swap("a", "b")
	})
	if !ok {
		problems = append(problems, "the daemon's test failed")
	}
	return problems
}

// look compares what the pool shows with the journal.
func (b *bench) look(volumes []api.Volume, files bool) (problems []string) {
	c := b.journal.at(b.next, b.seen)
	now := newWorld(volumes)
	worlds, doing := c.worlds()
	if !slices.ContainsFunc(worlds, func(w world) bool { return w.text == now.text }) {
		var want []string
		for _, w := range worlds {
			want = append(want, w.text)
		}
		problems = append(problems, fmt.Sprintf("the pool shows, %s,\n%s\nwanted\n%s", doing, now.text, strings.Join(want, "\nor\n")))
	}
	shown := map[string]map[int64]int{}
	for _, v := range volumes {
		var err error
		switch {
		case slices.Contains(rawVolumes, v.Name):
			err = b.read(v.Device, func(data []byte) {
				problems = append(problems, c.checkBlocks(v.Position.ID, func(block int64) []byte {
					return data[block*blockDistance:][:blockSize]
				}, shown)...)
			})
		case v.Name != filesVolume:
			problems = append(problems, b.lookAtHead(v.Name, v.Device)...)
		case files:
			problems = append(problems, b.lookAtFiles(c, v.Device)...)
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("volume %s: %v", v.Name, err))
		}
	}
	return append(problems, c.checkMet(shown)...)
}

// lookAtHead looks at a volume that nobody has written to: its head was wiped
// before it was there.
func (b *bench) lookAtHead(name, device string) (problems []string) {
	err := b.read(device, func(data []byte) {
		if !bytes.Equal(data[:rig.MiB], zeroes[:]) {
			problems = append(problems, fmt.Sprintf("volume %s does not begin with zeroes", name))
		}
	})
	if err != nil {
		problems = append(problems, fmt.Sprintf("volume %s: %v", name, err))
	}
	return problems
}

// read reads the first 2 MiB of a device past the page cache, or all.
func (b *bench) read(path string, look func(data []byte)) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.ReadFull(f, b.buffer)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	look(b.buffer[:n])
	return nil
}

// lookAtFiles mounts the filesystem, which replays its journal, and has it
// checked afterwards.
func (b *bench) lookAtFiles(c *cut, device string) (problems []string) {
	dir := b.t.TempDir()
	if err := unix.Mount(device, dir, "ext4", 0, ""); err != nil {
		return []string{fmt.Sprintf("mounting the filesystem: %v", err)}
	}
	problems = c.checkFiles(dir)
	if err := unix.Unmount(dir, 0); err != nil {
		return append(problems, fmt.Sprintf("unmounting the filesystem: %v", err))
	}
	if out, err := exec.Command("e2fsck", "-fn", device).CombinedOutput(); err != nil {
		problems = append(problems, fmt.Sprintf("e2fsck: %v\n%s", err, out))
	}
	return problems
}
