//go:build vm

package power

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

const (
	volumeSize      = 2 * rig.MiB
	blocksPerVolume = 32
	blockDistance   = volumeSize / blocksPerVolume
)

// The volumes that are written to block by block. The first of each pair has a
// stream with FUA, the second one with fsync; the pairs are swapped.
var rawVolumes = []string{"a", "b", "c", "d"}

// filesVolume has a filesystem.
const filesVolume = "files"

// load is the real daemon at work on a logged disk.
type load struct {
	*rig.Daemon
	t       *testing.T
	journal *journal
	random  *rand.Rand
	streams []*stream
	mount   string
	quit    chan struct{}
	done    sync.WaitGroup
}

// runLoad does rounds of everything that a daemon can be asked for, while all
// volumes are written to. It returns the journal; the log has all of it.
func runLoad(t *testing.T, disk *loggedDisk, random *rand.Rand, rounds int) *journal {
	l := &load{
		Daemon: rig.StartWith(t, rig.Options{Disks: disk.Members}), t: t, random: random,
		journal: newJournal(disk, len(rawVolumes)), quit: make(chan struct{}),
	}
	l.PoolWith(api.CreatePoolRequest{Name: "tank", ExtentSize: rig.MiB})
	for i, name := range rawVolumes {
		l.VolumeWith(api.CreateVolumeRequest{Name: name, Size: volumeSize, Stripes: 1 + i/2, Zero: true})
	}
	v := l.Volume(filesVolume, 16*rig.MiB)
	rig.Tool(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "2048", "-J", "size=4", v.Device)
	l.mount = rig.Mount(t, v.Device, "ext4")
	rig.Tool(t, "sync", "-f", l.mount)
	l.journal.start(l.volumes())
	l.journal.event()

	for i, name := range rawVolumes {
		l.streams = append(l.streams, l.newStream(i, name, i%2 == 0))
	}
	for _, s := range l.streams {
		l.done.Go(func() { s.run() })
	}
	l.done.Go(l.writeFiles)
	for range rounds {
		l.round()
	}
	close(l.quit)
	l.done.Wait()
	l.journal.event()
	rig.Unmount(t, l.mount)
	return l.journal
}

func (l *load) volumes() []api.Volume {
	list, err := l.Client.Volumes(l.t.Context(), "tank")
	if err != nil {
		l.t.Fatal(err)
	}
	return list
}

func (l *load) operate(name string, swaps [][2]string, do func() error) {
	l.journal.operate(name, swaps, func() {
		if err := do(); err != nil {
			l.t.Errorf("%s: %v", name, err)
		}
	}, func() world { return newWorld(l.volumes()) })
	// Between operations there are moments with none.
	time.Sleep(time.Duration(l.random.IntN(20)) * time.Millisecond)
}

// round asks for everything once, in an order by chance as far as it can be.
func (l *load) round() {
	ctx, c := l.t.Context(), l.Client
	swap := func(pairs ...[2]string) func() error {
		return func() error {
			var req api.SwapRequest
			for _, p := range pairs {
				req.Pairs = append(req.Pairs, api.SwapPair{A: p[0], B: p[1]})
			}
			req.AllowHolders = true // the streams have them open
			_, err := c.Swap(ctx, req)
			return err
		}
	}
	ab, cd := [2]string{"a", "b"}, [2]string{"c", "d"}
	life := []func(){
		func() {
			l.operate("create", nil, func() error {
				_, err := c.CreateVolume(ctx, api.CreateVolumeRequest{Name: "n", Size: 2 * rig.MiB, Stripes: 1 + l.random.IntN(2)})
				return err
			})
		},
		func() {
			l.operate("grow", nil, func() error {
				_, err := c.GrowVolume(ctx, "n", 5*rig.MiB)
				return err
			})
		},
		func() {
			l.operate("quarantine", nil, func() error {
				_, err := c.Quarantine(ctx, "n", api.QuarantineRequest{Quarantine: api.Quarantine{Reason: "test", Job: "job", ExitCode: 3}})
				return err
			})
		},
		func() {
			l.operate("release", nil, func() error {
				_, err := c.ReleaseQuarantine(ctx, "n")
				return err
			})
		},
		func() {
			l.operate("delete", nil, func() error { return c.DeleteVolume(ctx, "n", false) })
		},
	}
	others := []func(){
		func() { l.operate("swap", [][2]string{ab}, swap(ab)) },
		func() { l.operate("swap of two pairs", [][2]string{ab, cd}, swap(ab, cd)) },
		func() {
			l.streams[1].swapInGroup(func() { l.operate("swap between write and fsync", [][2]string{ab}, swap(ab)) })
		},
		func() { l.operate("snapshot", nil, func() error { return l.snapshot("a", filesVolume) }) },
	}
	l.random.Shuffle(len(others), func(i, k int) { others[i], others[k] = others[k], others[i] })
	for len(life)+len(others) > 0 {
		from := &life
		if l.random.IntN(len(life)+len(others)) >= len(life) {
			from = &others
		}
		(*from)[0]()
		*from = (*from)[1:]
	}
}

// snapshot takes one, has data copied into it, and ends it.
func (l *load) snapshot(volumes ...string) error {
	snap, end, err := l.Client.OpenSnapshot(l.t.Context(), api.SnapshotRequest{Volumes: volumes, COWSize: 4 * rig.MiB})
	if err != nil {
		return err
	}
	l.WaitWrites(volumes[0], 8)
	f, err := os.Open(snap.Volumes[0].Device)
	if err == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(f, rig.MiB))
		f.Close()
	}
	if err := end(l.t.Context()); err != nil {
		return err
	}
	// The answer to the end does not wait for it, and volumes end one by one.
	for _, v := range volumes {
		rig.WaitUntil(l.t, "the snapshot of "+v+" to end", func() bool { return !l.Show(v).Snapshot })
	}
	return err
}

// stream writes numbered blocks to a volume, one group after the other.
type stream struct {
	l      *load
	number int
	volume string
	fua    bool
	f      *os.File
	buf    []byte
	next   int64

	mu sync.Mutex // held through a group
}

func (l *load) newStream(number int, volume string, fua bool) *stream {
	flags := os.O_WRONLY
	if fua {
		flags |= unix.O_DSYNC
	}
	return &stream{
		l: l, number: number, volume: volume, fua: fua,
		f: rig.OpenDirect(l.t, l.Show(volume).Device, flags), buf: rig.Aligned(l.t, blockSize),
	}
}

func (s *stream) run() {
	defer s.f.Close()
	for {
		select {
		case <-s.l.quit:
			return
		case <-time.After(5 * time.Millisecond):
		}
		s.group(1+int(s.next%4), func() {})
	}
}

func (s *stream) swapInGroup(swap func()) { s.group(3, swap) }

// group writes n blocks and makes them durable; with FUA one is a group.
// Between is called before the fsync.
func (s *stream) group(n int, between func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fua {
		n = 1
	}
	var list []*record
	for range n {
		// Each kind of stream has blocks of its own behind whatever volume: the
		// log has a write with FUA before one that was in the cache when it came.
		block := s.next % (blocksPerVolume / 2) * 2
		if !s.fua {
			block++
		}
		s.next++
		r := s.l.journal.begin(s.number, s.volume, block)
		stamped(r.id, block, s.buf)
		if _, err := s.f.WriteAt(s.buf, block*blockDistance); err != nil {
			s.l.t.Errorf("stream on %s: %v", s.volume, err)
			return
		}
		s.l.journal.end(r, s.volume)
		list = append(list, r)
	}
	between()
	if !s.fua {
		s.l.journal.flushing(list)
		if err := unix.Fdatasync(int(s.f.Fd())); err != nil {
			s.l.t.Errorf("stream on %s: fdatasync: %v", s.volume, err)
			return
		}
	}
	s.l.journal.durable(list)
}

// writeFiles makes file after file on the filesystem, each durable before the
// next begins, and removes old ones.
func (l *load) writeFiles() {
	const kept = 40
	for n := 0; ; n++ {
		select {
		case <-l.quit:
			return
		case <-time.After(30 * time.Millisecond):
		}
		f := file{name: fmt.Sprintf("file%d", n), data: fileData(n)}
		if err := writeDurable(filepath.Join(l.mount, f.name), f.data); err != nil {
			l.t.Errorf("%s: %v", f.name, err)
			return
		}
		f.ack = l.journal.event()
		l.journal.mu.Lock()
		l.journal.files = append(l.journal.files, f)
		l.journal.mu.Unlock()
		if n >= kept {
			if err := os.Remove(filepath.Join(l.mount, fmt.Sprintf("file%d", n-kept))); err != nil {
				l.t.Error(err)
			}
		}
	}
}

func fileData(n int) []byte { return rig.RandomBytes(uint64(n), 100+n*977%20000) }

// writeDurable makes a file that is there after a power cut: it and its name.
func writeDurable(path string, data []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// checkFiles wants the files that were durable at a cut, but for those that may
// have been removed again.
func (c *cut) checkFiles(dir string) (problems []string) {
	last := -1
	for i, f := range c.files {
		if c.seen[f.ack] {
			last = i
		}
	}
	const kept = 40
	found := 0
	for i := max(0, last+1-kept+1); i <= last; i++ {
		f := c.files[i]
		got, err := os.ReadFile(filepath.Join(dir, f.name))
		switch {
		case err != nil:
			problems = append(problems, fmt.Sprintf("a file that was durable (event %d): %v", f.ack, err))
		case !bytes.Equal(got, f.data):
			problems = append(problems, fmt.Sprintf("%s has %d bytes of other content than the %d that were durable (event %d)", f.name, len(got), len(f.data), f.ack))
		default:
			found++
		}
	}
	return problems
}
