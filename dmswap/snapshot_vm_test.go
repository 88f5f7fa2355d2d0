//go:build vm

package dmswap

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/swapback/swapback/dmswap/dm"
)

// TestVMSnapshotIsOneInstant writes to two volumes in turn: first number n to
// one, then number n to the other. At any one instant the first is equal to the
// second or one ahead.
func TestVMSnapshotIsOneInstant(t *testing.T) {
	p := newVMPool(t, 1<<20)
	const size, blocks = 4 << 20, 64
	a := mustCreate(t, p.Pool, VolumeSpec{Name: "a", Size: size, Zero: true})
	b := mustCreate(t, p.Pool, VolumeSpec{Name: "b", Size: size, Stripes: 2, Zero: true})
	fa, fb := direct(t, a.Device), direct(t, b.Device)
	quit := make(chan struct{})
	var writer sync.WaitGroup
	var failed error
	progress := make(chan uint64, 1)
	writer.Go(func() {
		for seq := uint64(1); failed == nil; seq++ {
			select {
			case <-quit:
				return
			case progress <- seq:
			default:
			}
			// The newest number is at a place of its own; others go all over.
			at := int64(seq%blocks) * 16 * blockSize
			for _, f := range []*os.File{fa, fb} {
				_, err := f.WriteAt(block('w', seq, seq), at)
				if err == nil && at != 0 {
					_, err = f.WriteAt(block('w', 0, seq), 0)
				}
				failed = errors.Join(failed, err)
			}
		}
	})
	for i := range 5 {
		for range 3 { // some writes between the snapshots
			<-progress
			<-progress
		}
		list, err := p.OpenSnapshots(ctx, []string{"a", "b"}, SnapshotOptions{})
		if err != nil {
			t.Fatal(err)
		}
		first := [2][]byte{readAll(t, list[0].Device()), readAll(t, list[1].Device())}
		<-progress
		<-progress
		for j, s := range list {
			if !bytes.Equal(readAll(t, s.Device()), first[j]) {
				t.Errorf("snapshot %d of %s changes while it is open", i, s.volume.Name)
			}
		}
		sa, sb := stampOf(t, list[0]), stampOf(t, list[1])
		if sa != sb && sa != sb+1 {
			t.Errorf("snapshot %d: a is at %d and b at %d: not one instant", i, sa, sb)
		}
		mustCheck(t, p.Pool)
		var closing sync.WaitGroup
		for _, s := range list {
			closing.Go(func() {
				if err := s.Close(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		closing.Wait()
		mustCheck(t, p.Pool)
	}
	close(quit)
	go func() {
		for range progress { //nolint:revive // the writer may be about to send
		}
	}()
	writer.Wait()
	close(progress)
	if failed != nil {
		t.Errorf("a write failed: %v", failed)
	}
}

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Not from the page cache of an earlier look.
	if err := dropCache(path); err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return h.Sum(nil)
}

// stampOf returns the newest number that a snapshot shows.
func stampOf(t *testing.T, s *Snapshot) uint64 {
	t.Helper()
	f, err := os.Open(s.Device())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, _, seq, ok, err := readStamp(f, 0)
	if err != nil || !ok {
		t.Fatalf("first block of the snapshot of %s: whole: %v, %v", s.volume.Name, ok, err)
	}
	return seq
}

func TestVMSnapshotOverflow(t *testing.T) {
	p := newVMPool(t, 1<<20)
	v := mustCreate(t, p.Pool, VolumeSpec{Name: "v", Size: 16 << 20})
	f := direct(t, v.Device)
	fill(t, f, 'a', v.Size)
	s, err := p.OpenSnapshot(ctx, "v", SnapshotOptions{COWSize: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, f, 'b', 1<<20)
	st, err := s.Status(ctx)
	if err != nil || st.Invalid || st.Used < 1<<20 || st.Total != 2<<20 {
		t.Errorf("half-way: %+v, %v", st, err)
	}
	snap, err := os.Open(s.Device())
	if err != nil {
		t.Fatal(err)
	}
	verify(t, snap, 'a', v.Size)
	fill(t, f, 'c', v.Size)
	if st, err = s.Status(ctx); err != nil || !st.Invalid {
		t.Errorf("full: %+v, %v", st, err)
	}
	if _, err := io.Copy(io.Discard, io.NewSectionReader(direct(t, s.Device()), 0, v.Size)); err == nil {
		t.Error("an invalid snapshot can be read")
	}
	verify(t, f, 'c', v.Size)
	snap.Close()
	mustCheckFreeOf(t, p, s)
	verify(t, f, 'c', v.Size)
}

// mustCheckFreeOf closes a snapshot and its device's readers.
func mustCheckFreeOf(t *testing.T, p *vmPool, s *Snapshot) {
	t.Helper()
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p.Pool)
	if err := s.Close(ctx); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestVMSnapshotWithAReaderLeft(t *testing.T) {
	p := newVMPool(t, 1<<20)
	v := mustCreate(t, p.Pool, VolumeSpec{Name: "v", Size: 4 << 20})
	f := direct(t, v.Device)
	fill(t, f, 'a', v.Size)
	s, err := p.OpenSnapshot(ctx, "v", SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if w, err := os.OpenFile(s.Device(), os.O_WRONLY, 0); err == nil {
		if _, err = w.Write(make([]byte, 4096)); err == nil {
			err = w.Sync()
		}
		w.Close()
		if err == nil {
			t.Error("a snapshot can be written to")
		}
	}
	reader, err := os.Open(s.Device())
	if err != nil {
		t.Fatal(err)
	}
	verify(t, reader, 'a', v.Size)
	fill(t, f, 'b', v.Size)
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p.Pool)
	if err := dropCache(s.Device()); err != nil {
		t.Error(err)
	}
	if _, err := reader.ReadAt(make([]byte, 4096), 0); err == nil {
		t.Error("the reader reads on from a snapshot that is closed")
	}
	if _, err := p.OpenSnapshot(ctx, "v", SnapshotOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("a second snapshot while the first is held: %v", err)
	}
	mustCheck(t, p.Pool)
	verify(t, f, 'b', v.Size)
	reader.Close()
	waitGone(t, dmUUID(p.uuid, v.UUID, suffixSnap))
	s, err = p.OpenSnapshot(ctx, "v", SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mustCheckFreeOf(t, p, s)
}

// waitGone waits until a device that is removed with its last opener is gone.
func waitGone(t *testing.T, uuid string) {
	t.Helper()
	c, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 1000 {
		if _, err := c.Info(dm.ByUUID(uuid)); errors.Is(err, dm.ErrNotFound) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("device %s is still there", uuid)
}

// TestVMSnapshotUnderLoad opens and closes snapshots while a volume is used.
func TestVMSnapshotUnderLoad(t *testing.T) {
	p := newVMPool(t, 1<<20)
	v := mustCreate(t, p.Pool, VolumeSpec{Name: "v", Size: 4 << 20, Stripes: 2, Zero: true})
	l := startLoad(t, v.Device, 'l', uint64(v.Size)/blockSize, 4)
	for range 5 {
		l.waitFor(t, 30)
		s, err := p.OpenSnapshot(ctx, "v", SnapshotOptions{})
		if err != nil {
			t.Fatal(err)
		}
		want := readAll(t, s.Device())
		l.waitFor(t, 30)
		if !bytes.Equal(readAll(t, s.Device()), want) {
			t.Error("the snapshot changes")
		}
		mustCheckFreeOf(t, p, s)
	}
	l.stop(t)
}
