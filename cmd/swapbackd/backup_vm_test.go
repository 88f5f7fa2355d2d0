//go:build vm

package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent"
	"github.com/swapback/swapback/soak/rig"
)

// TestBackupIsOneInstant backs two volumes up as one group while a writer
// numbers its writes and spreads them over both. The writer waits for each
// write before it makes the next, so an image of one instant holds all writes
// up to some number and none after it.
func TestBackupIsOneInstant(t *testing.T) {
	d := startDaemon(t)
	d.Pool()
	volumes := []api.Volume{d.Volume("a", 8*MiB), d.Volume("b", 8*MiB)}
	repo, err := backup.Init(t.Context(), filepath.Join(t.TempDir(), "repo"), backup.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := startNumberedWriter(t, volumes)
	w.waitFor(200)
	for round := range 2 {
		before := w.written.Load()
		b, err := hostagent.Backup(t.Context(), hostagent.BackupOptions{Service: d.Client, Repo: repo, Volumes: []string{"a", "b"}})
		if err != nil {
			t.Fatal(err)
		}
		after := w.written.Load()
		w.waitFor(after + 200) // the volumes go on, away from the instant
		names := []string{"copy-a", "copy-b"}
		var images [][]byte
		for i, v := range volumes {
			c := d.Volume(names[i], v.Size)
			rig.WriteDevice(t, c.Device, 0, rig.RandomBytes(40, int(v.Size))) // what must not show through
			if _, err := hostagent.Restore(t.Context(), hostagent.RestoreOptions{
				Service: d.Client, Repo: repo, Backup: b.ID, Volume: names[i], From: v.Name, Overwrite: true,
			}); err != nil {
				t.Fatal(err)
			}
			images = append(images, rig.ReadDevice(t, c.Device, 0, int(c.Size)))
			if err := d.Client.DeleteVolume(t.Context(), names[i], false); err != nil {
				t.Fatal(err)
			}
		}
		last := checkNumbered(t, images)
		if last < before || last > after {
			t.Errorf("round %d: the backup shows write %d, but was taken between writes %d and %d", round, last, before, after)
		}
	}
	w.stop()
}

// numberedWriter writes the numbers 1, 2, 3 … each to the block that
// numberedBlock names, one after the other and durably.
type numberedWriter struct {
	t       *testing.T
	written atomic.Uint64 // the last number that was acknowledged
	quit    chan struct{}
	done    chan error
}

const numberedBlocks = 256 // per volume

// numberedBlock spreads the numbers: odd to one volume, even to the other, and
// far apart on each.
func numberedBlock(n uint64) (volume int, off int64) {
	return int(n % 2), int64(n / 2 * 37 % numberedBlocks * 4096)
}

func startNumberedWriter(t *testing.T, volumes []api.Volume) *numberedWriter {
	t.Helper()
	w := &numberedWriter{t: t, quit: make(chan struct{}), done: make(chan error, 1)}
	var files []*os.File
	for _, v := range volumes {
		rig.WriteDevice(t, v.Device, 0, make([]byte, v.Size))
		files = append(files, rig.OpenDirect(t, v.Device, os.O_WRONLY|unix.O_DSYNC))
	}
	buf := rig.Aligned(t, 4096)
	go func() {
		defer func() {
			for _, f := range files {
				f.Close()
			}
		}()
		for n := uint64(1); ; n++ {
			select {
			case <-w.quit:
				w.done <- nil
				return
			default:
			}
			volume, off := numberedBlock(n)
			binary.LittleEndian.PutUint64(buf, n)
			if _, err := files[volume].WriteAt(buf, off); err != nil {
				w.done <- err
				return
			}
			w.written.Store(n)
			// The backup beside it shall get on too, on two emulated processors.
			time.Sleep(time.Millisecond)
		}
	}()
	return w
}

func (w *numberedWriter) waitFor(n uint64) {
	w.t.Helper()
	rig.WaitUntil(w.t, "the numbered writer to get on", func() bool { return w.written.Load() >= n })
}

func (w *numberedWriter) stop() {
	close(w.quit)
	if err := <-w.done; err != nil {
		w.t.Errorf("numbered writer: %v", err)
	}
}

// checkNumbered returns the highest number in the images and fails unless each
// block holds the newest number up to it that belongs there.
func checkNumbered(t *testing.T, images [][]byte) uint64 {
	t.Helper()
	last := uint64(0)
	for _, image := range images {
		for off := 0; off < numberedBlocks*4096; off += 4096 {
			last = max(last, binary.LittleEndian.Uint64(image[off:]))
		}
	}
	type place struct {
		volume int
		off    int64
	}
	want := map[place]uint64{}
	for n := uint64(1); n <= last; n++ {
		volume, off := numberedBlock(n)
		want[place{volume, off}] = n
	}
	for p, n := range want {
		if got := binary.LittleEndian.Uint64(images[p.volume][p.off:]); got != n {
			t.Errorf("volume %d at byte %d holds write %d, want %d: not one instant", p.volume, p.off, got, n)
		}
	}
	for i, image := range images {
		for off := int64(numberedBlocks * 4096); off < int64(len(image)); off++ {
			if image[off] != 0 {
				t.Fatalf("volume %d at byte %d: old data shows through the restore", i, off)
			}
		}
	}
	return last
}
