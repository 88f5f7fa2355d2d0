//go:build vm

package power

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/power/logwrites"
	"github.com/swapback/swapback/soak/rig"
)

const (
	mapMember = 32 << 20 // bytes of a member
	mapExtent = 1 << 20
	mapRounds = 5
	mapBits   = (4096 - 64) * 8 // extents of a page
)

// TestChangeMapIsAheadOfItsWrites looks at every state that a power cut could
// leave of a pool that is written to while backups of it are recorded: an extent
// whose bit is not set has not been written to since the backup that the metadata
// names at that moment. The writes are FUA, so that the log has them in the order
// in which they were done.
func TestChangeMapIsAheadOfItsWrites(t *testing.T) {
	disks := rig.Disks(t)
	disk := newLoggedDisk(t, "soakmap", disks[0], disks[1], members, mapMember)
	var v api.Volume
	dataOffset := int64(0)
	t.Run("load", func(t *testing.T) { v, dataOffset = mapLoad(t, disk) })
	disk.Close()
	if t.Failed() {
		return
	}
	log := disk.Log()
	w := &mapWatch{t: t, log: log, volume: v, dataOffset: dataOffset, bits: map[[2]int64]bool{}, changed: map[int]map[[2]int64]bool{}}
	for i, e := range log.Entries {
		if e.Text == "end" {
			break
		}
		w.entry(i, e)
	}
	t.Logf("%d entries: %d writes to extents of the volume, %d bits set, %d taken back, backup %d at the end", len(log.Entries), w.writes, w.sets, w.clears, w.base)
	if w.base != mapRounds || w.writes < 20*mapRounds || w.clears < mapRounds || w.sets < mapRounds {
		t.Error("that is not what the load should have done")
	}
}

// mapLoad writes and records backups, and returns the volume and where extent 0 of
// a member is.
func mapLoad(t *testing.T, disk *loggedDisk) (api.Volume, int64) {
	ctx := t.Context()
	d := rig.StartWith(t, rig.Options{Disks: disk.Members})
	pool := d.PoolWith(api.CreatePoolRequest{Name: "tank", ExtentSize: mapExtent})
	v := d.VolumeWith(api.CreateVolumeRequest{Name: "db", Size: 16 << 20, Stripes: members})
	f := rig.OpenDirect(t, v.Device, os.O_WRONLY|unix.O_DSYNC)
	defer f.Close()
	var buffers [4][]byte
	for i := range buffers {
		buffers[i] = rig.Aligned(t, 4096)
		copy(buffers[i], rig.RandomBytes(uint64(i), 4096))
	}
	// Few places, so that each round leaves extents that it does not touch.
	write := func(seed int64, n int) *sync.WaitGroup {
		var all sync.WaitGroup
		for i, buf := range buffers {
			rng := rand.New(rand.NewSource(seed + int64(i)<<32))
			all.Go(func() {
				for range n {
					if _, err := f.WriteAt(buf, rng.Int63n(2)<<20*rng.Int63n(8)+rng.Int63n(256)<<12); err != nil {
						t.Error(err)
					}
				}
			})
		}
		return &all
	}
	for k := 1; k <= mapRounds; k++ {
		write(int64(k), 3).Wait()
		snap, end, err := d.Client.OpenSnapshot(ctx, api.SnapshotRequest{Volumes: []string{"db"}})
		if err != nil {
			t.Fatal(err)
		}
		disk.Mark(fmt.Sprintf("cut-%d", k))
		if err := end(ctx); err != nil {
			t.Fatal(err)
		}
		rig.WaitUntil(t, "the snapshot to end", func() bool { return !d.Show("db").Snapshot })
		writing := write(int64(k)<<8, 6)
		_, err = d.Client.SetDescendsFrom(ctx, "db", api.DescendsRequest{Backup: fmt.Sprintf("b-%d", k), Cut: snap.Volumes[0].Changes.Cut})
		if err != nil {
			t.Fatal(err)
		}
		writing.Wait()
	}
	if got := d.Show("db").Changed; got == nil || got.Base != fmt.Sprintf("b-%d", mapRounds) {
		t.Errorf("at the end: %+v", got)
	}
	disk.Mark("end")
	return v, pool.Members[0].DataOffset
}

// mapWatch is what a machine would find after each entry of the log.
type mapWatch struct {
	t          *testing.T
	log        *logwrites.Log
	volume     api.Volume
	dataOffset int64

	base, staged int                       // number of the backup in the metadata; of the newest body
	bits         map[[2]int64]bool         // member and extent
	changed      map[int]map[[2]int64]bool // written to since a cut
	writes       int
	sets, clears int
}

func (w *mapWatch) entry(i int, e logwrites.Entry) {
	w.t.Helper()
	var k int
	if _, err := fmt.Sscanf(e.Text, "cut-%d", &k); err == nil {
		w.changed[k] = map[[2]int64]bool{}
	}
	if !e.HasData() {
		return
	}
	data, err := w.log.Data(e)
	if err != nil {
		w.t.Fatal(err)
	}
	for at := e.Offset; len(data) >= 4096; at, data = at+4096, data[4096:] {
		member, off := at/mapMember, at%mapMember
		switch block := data[:4096]; {
		case off >= w.dataOffset:
			w.write([2]int64{member, (off - w.dataOffset) / mapExtent})
		case bytes.HasPrefix(block, []byte("SWAPMAPB")):
			w.page(member, block)
		case bytes.HasPrefix(block, []byte("SWAPMETA")):
			w.base = w.staged
		default:
			for k := range w.changed {
				if bytes.Contains(block, fmt.Appendf(nil, `"base":{"backup":"b-%d"`, k)) {
					w.staged = max(w.staged, k)
				}
			}
		}
	}
	for x := range w.changed[w.base] {
		if !w.bits[x] {
			w.t.Fatalf("entry %d: extent %d of member %d was written to since backup b-%d, and its bit is not set", i, x[1], x[0], w.base)
		}
	}
}

func (w *mapWatch) write(x [2]int64) {
	for _, s := range w.volume.Position.Segments {
		for _, st := range s.Stripes {
			if int64(st.Member) == x[0] && x[1] >= st.Start && x[1] < st.Start+s.Extents {
				w.writes++
				for _, set := range w.changed {
					set[x] = true
				}
			}
		}
	}
}

// page takes over what a page says of the first extents of its member.
func (w *mapWatch) page(member int64, block []byte) {
	first := int64(binary.LittleEndian.Uint64(block[48:])) * mapBits
	for i := int64(0); i < mapBits && first+i < mapMember/mapExtent; i++ {
		x := [2]int64{member, first + i}
		now := block[64+i/8]>>(i%8)&1 != 0
		switch {
		case now && !w.bits[x]:
			w.sets++
		case !now && w.bits[x]:
			w.clears++
		}
		w.bits[x] = now
	}
}
