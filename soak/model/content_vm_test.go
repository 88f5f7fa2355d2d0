//go:build vm

package model

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// snapshot is an open snapshot and what it has to show.
type snapshot struct {
	volumes []*Volume
	devices []string
	blocks  []map[int64]uint64
	end     func(context.Context) error
}

// write puts a tag into a block of a volume, past the page cache. The device of
// a volume that is read-only refuses it.
func (w *walk) write() {
	v := w.some(func(v *Volume) bool { return v.Attached })
	if v == nil {
		return
	}
	off := one[int64](w, 0, v.Size-block, w.rng.Int64N(v.Size/block)*block)
	w.tag++
	for i := 0; i < block; i += 8 {
		binary.LittleEndian.PutUint64(w.buf[i:], w.tag)
	}
	f, err := os.OpenFile(fmt.Sprintf("/dev/ublkb%d", v.Device), os.O_WRONLY|unix.O_DIRECT, 0)
	if err == nil {
		_, err = f.WriteAt(w.buf, off)
		f.Close()
	}
	readOnly := v.ReadOnly || v.Position.Quarantined
	if (err != nil) != readOnly {
		w.fail("writing to %s at %d, read-only %v: %v", v.Name, off, readOnly, err)
	}
	if err == nil {
		v.Position.Blocks[off] = w.tag
	}
	w.called(nil, nil, "write", "%s at %d, tag %d, read-only %v", v.Name, off, w.tag, readOnly)
}

// verify reads what is known of a volume's content.
func (w *walk) verify() {
	if v := w.some(func(v *Volume) bool { return v.Attached }); v != nil {
		w.read(v)
		w.called(nil, nil, "verify", "%s, %d blocks", v.Name, len(v.Position.Blocks))
	}
}

// read compares a volume's blocks with the model, by way of the page cache or
// past it.
func (w *walk) read(v *Volume) {
	w.compareBlocks(fmt.Sprintf("/dev/ublkb%d", v.Device), v.Name, v.Position.Blocks, w.chance(2))
}

func (w *walk) compareBlocks(path, what string, blocks map[int64]uint64, direct bool) {
	flags := os.O_RDONLY
	if direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		w.fail("open %s (%s): %v", path, what, err)
	}
	defer f.Close()
	for _, off := range slices.Sorted(maps.Keys(blocks)) {
		if _, err := f.ReadAt(w.buf, off); err != nil {
			w.fail("read %s (%s) at %d: %v", path, what, off, err)
		}
		for i := 0; i < block; i += 8 {
			if tag := binary.LittleEndian.Uint64(w.buf[i:]); tag != blocks[off] {
				w.fail("%s (%s) has tag %d at %d, want %d, direct %v", path, what, tag, off+int64(i), blocks[off], direct)
			}
		}
	}
}

// maxSnapshots bounds how many are open: each takes extents.
const maxSnapshots = 2

func (w *walk) openSnapshot() {
	if len(w.snaps) >= maxSnapshots {
		w.closeSnapshot()
		return
	}
	var req api.SnapshotRequest
	for range one(w, 1, 1, 2, 3) {
		req.Volumes = append(req.Volumes, w.any())
	}
	req.COWSize = one[int64](w, 0, 0, 1, 4*rig.MiB, 8*rig.MiB, 1<<60, 1<<63-1, -1)
	got, end, err := w.d.Client.OpenSnapshot(w.t.Context(), req)
	if !w.called(err, w.p.Snapshot(req), "snapshot", "%.200q, %d for old data", req.Volumes, req.COWSize) {
		return
	}
	w.p.Snapshotted(req)
	s := &snapshot{end: end}
	for i, ref := range req.Volumes {
		v := w.p.Find(ref)
		if cow := v.Snapshot * w.p.ExtentSize; got.Volumes[i].COWSize != cow {
			w.fail("the snapshot of %s has %d bytes for old data, want %d", v.Name, got.Volumes[i].COWSize, cow)
		}
		s.volumes, s.devices = append(s.volumes, v), append(s.devices, got.Volumes[i].Device)
		s.blocks = append(s.blocks, maps.Clone(v.Position.Blocks))
	}
	w.snaps = append(w.snaps, s)
}

// closeSnapshot reads the oldest snapshot and gives it up. The daemon ends it
// some time after its client has gone.
func (w *walk) closeSnapshot() {
	if len(w.snaps) == 0 {
		return
	}
	s := w.snaps[0]
	w.snaps = w.snaps[1:]
	for i, v := range s.volumes {
		w.compareBlocks(s.devices[i], "snapshot of "+v.Name, s.blocks[i], true)
	}
	_ = s.end(w.t.Context()) // it tells of the request that was broken off
	for _, v := range s.volumes {
		rig.WaitUntil(w.t, "the snapshot of "+v.Name+" to end", func() bool { return !w.d.Show(v.UUID).Snapshot })
		v.Snapshot = 0
	}
	w.called(nil, nil, "close snapshot", "%d volumes", len(s.volumes))
}

// dropSnapshots forgets snapshots whose daemon is gone.
func (w *walk) dropSnapshots() {
	for _, s := range w.snaps {
		_ = s.end(w.t.Context())
	}
	w.snaps = nil
}
