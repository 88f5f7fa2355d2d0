package nvmeof

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// fileRig is a rig whose namespace 2 is a file.
func fileRig(t *testing.T, opt Options) (*rig, *Namespace, string) {
	t.Helper()
	opt.ringAlways = false // it comes when the file is met
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBackend(path, Limits{Discard: true})
	if err != nil {
		t.Fatal(err)
	}
	// Closed when the rig's cleanup, which comes later, cannot use it any more.
	r := newRig(t, opt)
	ns, err := r.subsys.AddNamespace(NamespaceConfig{ID: 2, Backend: b, UUID: [16]byte{2}, Failed: r.failed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.target.Close(ctxFor(t, 20*time.Second)); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, ns, path
}

// TestFile compares a file with a model of it, after random commands of all kinds by
// several queues, each with many under way.
func TestFile(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r, ns, path := fileRig(t, opt)
		c := r.connect(func(c *nvmetest.Config) { c.Queues = 3 })
		model := make([]byte, testSize)
		var wg sync.WaitGroup
		const workers = 12
		const part = testSize / workers &^ 511 // of the disk, for each
		for w := range workers {
			wg.Go(func() { scribble(t, c.IO[w%len(c.IO)], uint64(w), w*part/512, model[w*part:][:part]) })
		}
		wg.Wait()
		if _, err := c.IO[0].Do(&wire.SQE{Opcode: wire.OpFlush, NSID: 2}, nil, nil); err != nil {
			t.Error(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, model) {
			t.Error("the file is not what was written")
		}
		if s := ns.Stats(); s.Errors != 0 || s.InFlight != 0 || s.Writes == 0 || s.Discards == 0 || s.WriteZeroes == 0 {
			t.Errorf("statistics: %+v", s)
		}
	})
}

// scribble does random things to a part of the disk, which begins at a block, and
// to the model of it.
func scribble(t *testing.T, q *nvmetest.Queue, seed uint64, first int, model []byte) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	for i := range 60 {
		n := (1 + rnd.IntN(64)) * 512
		off := rnd.IntN((len(model)-n)/512) * 512
		lba, span := uint64(first+off/512), model[off:off+n]
		var err error
		switch rnd.IntN(5) {
		case 0:
			cmd := nvmetest.IOCommand(wire.OpWriteZeroes, 2, lba, n/512)
			cmd.CDW12 |= uint32(rnd.IntN(2)) * wire.ControlDeallocate
			clear(span)
			_, err = q.Do(&cmd, nil, nil)
		case 1:
			ranges := make([]byte, 4096)
			half := uint32(n / 512 / 2)
			wire.Range{Blocks: half, LBA: lba}.Put(ranges)
			wire.Range{Blocks: uint32(n/512) - half, LBA: lba + uint64(half)}.Put(ranges[16:])
			clear(span)
			_, err = q.Do(&wire.SQE{Opcode: wire.OpDSM, NSID: 2, CDW10: 1, CDW11: wire.DSMDeallocate}, ranges, nil)
		case 2:
			back := make([]byte, n)
			cmd := nvmetest.IOCommand(wire.OpRead, 2, lba, n/512)
			if _, err = q.Do(&cmd, nil, back); err == nil && !bytes.Equal(back, span) {
				t.Errorf("read %d of seed %d: %d bytes at %d are not what was written", i, seed, n, off)
			}
		default:
			copy(span, noise(rnd.Uint64(), n))
			cmd := nvmetest.IOCommand(wire.OpWrite, 2, lba, n/512)
			cmd.CDW12 |= uint32(rnd.IntN(2)) * wire.ControlFUA
			_, err = q.Do(&cmd, span, nil)
		}
		if err != nil {
			t.Errorf("command %d of seed %d: %v", i, seed, err)
			return
		}
	}
}

// TestFileThatShrinks fails what lies behind its end, and says that it may pass.
func TestFileThatShrinks(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r, ns, path := fileRig(t, opt)
		q := r.connect().IO[0]
		if err := os.Truncate(path, testSize/2); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, "reading behind the end", q.Read(2, testSize/512-8, make([]byte, 4096)), wire.UnrecoveredRead)
		wantStatus(t, "reading across the end", q.Read(2, testSize/2/512-4, make([]byte, 4096)), wire.UnrecoveredRead)
		if err := q.Read(2, testSize/2/512-8, make([]byte, 4096)); err != nil {
			t.Errorf("reading before the end: %v", err)
		}
		compare := nvmetest.IOCommand(wire.OpCompare, 2, testSize/512-8, 8)
		_, err := q.Do(&compare, make([]byte, 4096), nil)
		wantStatus(t, "comparing behind the end", err, wire.UnrecoveredRead)
		want := []Failure{
			{OpRead, testSize - 4096, 4096, unix.EIO}, {OpRead, testSize/2 - 2048, 4096, unix.EIO}, {OpRead, testSize - 4096, 4096, unix.EIO},
		}
		if got := r.failures(); !slices.Equal(got, want) {
			t.Errorf("told of %v, want %v", got, want)
		}
		if err := ns.Resize(testSize); err == nil {
			t.Error("the namespace is as large as the file was")
		}
		if err := ns.Resize(testSize / 4); err != nil {
			t.Error(err)
		}
	})
}

// TestFileThatIsReadOnly cannot be made writable.
func TestFileThatIsReadOnly(t *testing.T) {
	if unix.Geteuid() == 0 {
		// Root may write whatever the mode says: a read-only backend is one that says so.
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := OpenBackend(path, Limits{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		readOnlyBackend(t, b)
		return
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 4096), 0o400); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBackend(path, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	readOnlyBackend(t, b)
}

func readOnlyBackend(t *testing.T, b *Backend) {
	t.Helper()
	r := newRig(t, Options{})
	t.Cleanup(func() { b.Close() })
	ns := r.addNamespace(2, b)
	ns.SetReadOnly(false)
	if !ns.ReadOnly() {
		t.Error("it may be written to")
	}
	wantStatus(t, "write", r.connect().IO[0].Write(2, 0, make([]byte, 512)), wire.NamespaceProtected|wire.DNR)
	if err := r.subsys.RemoveNamespace(ctxFor(t, 10*time.Second), 2); err != nil {
		t.Error(err)
	}
}

func TestOpenBackendRefuses(t *testing.T) {
	dir := t.TempDir()
	small := filepath.Join(dir, "small")
	if err := os.WriteFile(small, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "none"), small, "/dev/null"} {
		if _, err := OpenBackend(path, Limits{}); err == nil {
			t.Errorf("%s was taken", path)
		}
	}
}

// TestDrainWaitsForTheRing: a hold under random load, with the disk's content looked
// at while the gate is closed: nothing may change it.
func TestDrainWaitsForTheRing(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r, ns, path := fileRig(t, opt)
		c := r.connect(func(c *nvmetest.Config) { c.Queues = 2 })
		stop, wg := make(chan struct{}), sync.WaitGroup{}
		for w := range 8 {
			wg.Go(func() {
				for i := uint64(0); ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					cmd := nvmetest.IOCommand(wire.OpWrite, 2, uint64(w*256), 128)
					if _, err := c.IO[w%2].Do(&cmd, noise(i, 64<<10), nil); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for range 20 {
			ns.Hold()
			if err := ns.Drain(ctxFor(t, 10*time.Second)); err != nil {
				t.Error(err)
			}
			one, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
			}
			time.Sleep(5 * time.Millisecond)
			two, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
			}
			if !bytes.Equal(one, two) {
				t.Error("the file changes behind a drained gate")
			}
			ns.Release()
			time.Sleep(2 * time.Millisecond)
		}
		close(stop)
		wg.Wait()
	})
}
