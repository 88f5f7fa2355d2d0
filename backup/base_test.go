package backup

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/swapback/swapback/backup/internal/store/s3test"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// disk is a volume that knows what was written to it.
type disk struct {
	t       testing.TB
	name    string
	path    string
	size    int64
	content []byte  // all of it, or nil
	written []Range // since the last call of source; in any order
	grain   int64   // of the list that it gives of them
}

func newDisk(t testing.TB, name string, content []byte) *disk {
	return &disk{t: t, name: name, path: write(t, content), size: int64(len(content)), content: bytes.Clone(content), grain: 512}
}

func (d *disk) write(off int64, p []byte) {
	d.t.Helper()
	f, err := os.OpenFile(d.path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(p, off)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		d.t.Fatal(err)
	}
	if d.content != nil {
		copy(d.content[off:], p)
	}
	d.written = append(d.written, Range{off, int64(len(p))})
}

func (d *disk) grow(size int) {
	d.t.Helper()
	if err := os.Truncate(d.path, int64(size)); err != nil {
		d.t.Fatal(err)
	}
	d.content = append(d.content, make([]byte, size-len(d.content))...)
	d.size = int64(size)
}

// source is the disk with what was written since the backup base, rounded to the
// grain, and forgets that.
func (d *disk) source(base string) Source {
	ch := &Changes{Base: base}
	slices.SortFunc(d.written, func(a, b Range) int { return cmp.Compare(a.Offset, b.Offset) })
	end := int64(0)
	for _, r := range d.written {
		from := max(r.Offset-r.Offset%d.grain, end)
		to := min((r.Offset+r.Length+d.grain-1)/d.grain*d.grain, d.size)
		if to > from {
			ch.Ranges = append(ch.Ranges, Range{from, to - from})
			end = to
		}
	}
	d.written = nil
	return d.plain(ch)
}

func (d *disk) plain(ch *Changes) Source {
	return Source{Path: d.path, Changes: ch, Volume: VolumeRef{Name: d.name, UUID: "uuid-" + d.name, PositionID: "pos-" + d.name}}
}

// newSparse is a disk of zeroes of any size, whose content is in its file only.
func newSparse(t testing.TB, name string, size int64) *disk {
	t.Helper()
	d := newDisk(t, name, nil)
	if err := os.Truncate(d.path, size); err != nil {
		t.Fatal(err)
	}
	d.size = size
	return d
}

// scribble writes n times, here and there: random bytes, zeroes, bytes from
// elsewhere, and what is there already.
func (d *disk) scribble(rnd *rand.Rand, n int) {
	d.t.Helper()
	for range n {
		p := make([]byte, 1+rnd.IntN(3*testChunk))
		off := rnd.IntN(len(d.content))
		p = p[:min(len(p), len(d.content)-off)]
		switch rnd.IntN(5) {
		case 0:
		case 1:
			copy(p, d.content[rnd.IntN(len(d.content)):])
		case 2:
			copy(p, d.content[off:])
		default:
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
		}
		d.write(int64(off), p)
	}
}

func wantBase(t testing.TB, b Backup, base string) {
	t.Helper()
	for _, v := range b.Volumes {
		if v.Base != base || (base != "") != (v.FullBecause == "") {
			t.Errorf("volume %s of %s was made against %q because %q, want %q", v.Name, b.ID, v.Base, v.FullBecause, base)
		}
	}
}

// wantRestored restores a volume of a backup and compares every byte.
func wantRestored(t testing.TB, r *Repository, id string, want []byte) {
	t.Helper()
	target := filepath.Join(t.TempDir(), "target")
	f, err := os.Create(target)
	if err == nil {
		err = errors.Join(f.Truncate(int64(len(want))), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	restore(t, r, RestoreOptions{Backup: id, Target: target, Parallel: 2})
	wantContent(t, id, target, want)
	os.Remove(target)
}

// wantFigures checks that a backup's figures are those of its content.
func wantFigures(t testing.TB, v BackupVolume, content []byte) {
	t.Helper()
	data := int64(0)
	zeroes := make([]byte, v.ChunkSize)
	for c := range slices.Chunk(content, int(v.ChunkSize)) {
		if !bytes.Equal(c, zeroes[:len(c)]) {
			data += int64(len(c))
		}
	}
	if v.DataBytes != data || v.ZeroBytes != v.Size-data || v.Size != int64(len(content)) {
		t.Errorf("figures are %d + %d of %d bytes, want %d of %d of data", v.DataBytes, v.ZeroBytes, v.Size, data, len(content))
	}
}

// Long chains of incremental backups, with all that can happen to a volume in
// between: each restores to its point in time, also when those before it have gone.
func TestIncrementalChain(t *testing.T) {
	for seed, size := range []int{30*testChunk + 5, 1, 1024 * testChunk, 1300*testChunk - 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(uint64(seed), 7))
			r, m := memRepo(t)
			d := newDisk(t, "v", make([]byte, size))
			d.grain = []int64{1, 512, 4096, 64 << 10, 1 << 20}[rnd.IntN(5)]
			d.scribble(rnd, 10)
			type point struct {
				id      string
				content []byte
			}
			b := create(t, r, CreateOptions{Parallel: 2}, d.source(""))
			wantBase(t, b, "")
			points := []point{{b.ID, bytes.Clone(d.content)}}
			for range 14 - 7*min(size/(1000*testChunk), 1) {
				if size > 1 && rnd.IntN(4) == 0 {
					d.grow(len(d.content) + 1 + rnd.IntN(5*testChunk))
				}
				d.scribble(rnd, rnd.IntN(7))
				o := CreateOptions{Parallel: 2, VerifyUnchanged: rnd.IntN(4) == 0}
				next := create(t, r, o, d.source(b.ID))
				wantBase(t, next, b.ID)
				v := next.Volumes[0]
				wantFigures(t, v, d.content)
				if o.VerifyUnchanged != (v.ReadBytes == v.Size) && v.Size > 100*testChunk {
					t.Errorf("%d of %d bytes were read: %+v", v.ReadBytes, v.Size, o)
				}
				// What was made by one way is what is made by the other.
				if rnd.IntN(4) == 0 {
					full := create(t, r, CreateOptions{Parallel: 2, Full: true}, d.source(b.ID))
					if f := full.Volumes[0]; f.DataBytes != v.DataBytes || f.FullBecause != "it was asked for" || f.StoredBytes > 8<<10 {
						t.Errorf("full one is %+v of %+v", f, v)
					}
					res, err := r.Diff(t.Context(), DiffOptions{A: full.ID, B: next.ID}, func(Range) error { return nil })
					if err != nil || res.Bytes != 0 {
						t.Errorf("full and incremental one differ: %+v, %v", res, err)
					}
				}
				b = next
				points = append(points, point{b.ID, bytes.Clone(d.content)})
			}
			rnd.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
			for i, p := range points {
				wantRestored(t, r, p.id, p.content)
				if _, _, err := r.Delete(t.Context(), p.id); err != nil {
					t.Fatal(err)
				}
				if i%4 == 0 {
					if _, err := r.Verify(t.Context(), VerifyOptions{Parallel: 2}); err != nil {
						t.Fatal(err)
					}
				}
			}
			if n := m.Names("leases"); len(n) > 0 {
				t.Errorf("leases left are %v", n)
			}
		})
	}
}

// Of one percent of random writes of 4 KiB just the chunks are read that they touch.
func TestIncrementalReadsWhatChanged(t *testing.T) {
	r, _ := memRepo(t)
	d := newDisk(t, "v", image(3, 1100))
	b := create(t, r, CreateOptions{}, d.source(""))
	d.grain = 64 << 10
	rnd := rand.New(rand.NewPCG(5, 5))
	chunks := make(map[int]bool)
	for range len(d.content) / 4096 / 100 {
		p := make([]byte, 4096)
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		off := rnd.IntN(len(d.content)/4096) * 4096
		d.write(int64(off), p)
		chunks[off/testChunk] = true
	}
	want := int64(len(chunks)) * testChunk
	var last Progress
	b2 := create(t, r, CreateOptions{Progress: func(p Progress) { last = p }}, d.source(b.ID))
	v := b2.Volumes[0]
	if v.ReadBytes > want*11/10 || v.ReadBytes < want || v.ChangedBytes != want {
		t.Errorf("%d bytes were read and %d had changed, of %d in chunks that were written to", v.ReadBytes, v.ChangedBytes, want)
	}
	if last.Total != v.ReadBytes || last.Done != v.ReadBytes {
		t.Errorf("progress ends at %d of %d", last.Done, last.Total)
	}
	wantRestored(t, r, b2.ID, d.content)
	// Nothing changed: nothing is read, and nothing is stored.
	b3 := create(t, r, CreateOptions{}, d.source(b2.ID))
	if v := b3.Volumes[0]; v.ReadBytes != 0 || v.StoredBytes != 0 || v.Table != b2.Volumes[0].Table || v.ReusedBytes != v.DataBytes {
		t.Errorf("an unchanged volume is %+v", v)
	}
	// What was written is what had been there: it is read, and not stored again.
	d.write(7*testChunk, d.content[7*testChunk:][:100*testChunk])
	b4 := create(t, r, CreateOptions{}, d.source(b3.ID))
	if v := b4.Volumes[0]; v.ReadBytes != 100*testChunk || v.ChangedBytes != 0 || v.StoredBytes != 0 || v.Table != b3.Volumes[0].Table {
		t.Errorf("a volume written over with the same is %+v", v)
	}
	wantRestored(t, r, b4.ID, d.content)
}

// The table of a large volume is taken over by reading the nodes above what changed,
// and of the chunks a sample, however large it is.
func TestIncrementalReadsFewNodes(t *testing.T) {
	for _, nodes := range []int64{8, 1024, 3000} {
		r, m := memRepo(t)
		r.packSize = 64 << 20 // a pack of chunks and one of nodes
		d := newSparse(t, "v", nodes*1024*testChunk+5)
		for i := range min(nodes, 40) {
			d.write(i*1024*testChunk+5*testChunk, bytes.Repeat([]byte{byte(i + 1)}, testChunk))
		}
		zero := zeroBackup(t, r, d.plain(nil).Volume, d.size)
		b := create(t, r, CreateOptions{}, d.source(zero))
		wantBase(t, b, zero)
		for _, i := range []int64{3, 4, 7} {
			d.write(i*1024*testChunk+9*testChunk, []byte("changed"))
		}
		other := m.Open()
		var mu sync.Mutex
		reads := make(map[string]int)
		other.After = func(op storetest.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if op.Kind == "read" && strings.HasPrefix(op.Name, "packs/") {
				reads[op.Name]++
			}
			return nil
		}
		b2 := create(t, view(t, other, 2), CreateOptions{}, d.source(b.ID))
		wantBase(t, b2, b.ID)
		// The root, on the large one a node below it, three nodes, and one or two
		// more on the way to the sample; of that its chunk, and its pack's size, both
		// ends and directory, and in the end whether that is still there.
		sum := 0
		for _, n := range reads {
			sum += n
		}
		if sum > 1+1+3+2+6 {
			t.Errorf("%d nodes: %d reads: %v", nodes, sum, reads)
		}
		if v := b2.Volumes[0]; v.ReadBytes != 3*testChunk || v.DataBytes != (min(nodes, 40)+3)*testChunk {
			t.Errorf("%+v", v)
		}
		if _, err := r.Verify(t.Context(), VerifyOptions{Parallel: 2}, b2.ID); err != nil {
			t.Error(err)
		}
	}
}

// Nodes are read several at once, before they are needed.
func TestIncrementalReadsAhead(t *testing.T) {
	const nodes = 40
	r, m := memRepo(t)
	r.packSize = 64 << 20
	d := newSparse(t, "v", nodes*1024*testChunk)
	for i := range int64(nodes) {
		d.write(i*1024*testChunk, []byte{byte(i + 1)})
	}
	b := create(t, r, CreateOptions{}, d.source(zeroBackup(t, r, d.plain(nil).Volume, d.size)))
	for i := range int64(nodes) {
		d.write(i*1024*testChunk+testChunk, []byte{2})
	}
	nodePack := nodePacks(t, m)[0]
	other := m.Open()
	var mu sync.Mutex
	reading, most, all := 0, 0, 0
	together := make(chan struct{})
	other.Before = func(op storetest.Op) error {
		if op.Kind != "read" || op.Name != nodePack {
			return nil
		}
		mu.Lock()
		all++
		reading++
		if most = max(most, reading); most == nodeReaders && all > nodeReaders {
			select {
			case <-together:
			default:
				close(together)
			}
		}
		first := all <= 4 // the root and the sample's, then two to know their blobs: one by one
		mu.Unlock()
		if !first {
			select {
			case <-together:
			case <-time.After(10 * time.Second):
			}
		}
		mu.Lock()
		reading--
		mu.Unlock()
		return nil
	}
	b2 := create(t, view(t, other, 2), CreateOptions{Parallel: 2}, d.source(b.ID))
	wantBase(t, b2, b.ID)
	if most != nodeReaders || all > nodes+3 {
		t.Errorf("%d nodes were read, at most %d at once", all, most)
	}
	if _, err := r.Verify(t.Context(), VerifyOptions{Parallel: 2}, b2.ID); err != nil {
		t.Error(err)
	}
}

// zeroBackup writes the manifest of a backup of a volume of zeroes, which is all
// there is of one, without reading any.
func zeroBackup(t testing.TB, r *Repository, v VolumeRef, size int64) string {
	t.Helper()
	v.Size = size
	b := Backup{Created: r.now(), Volumes: []BackupVolume{{VolumeRef: v, ChunkSize: r.config.ChunkSize, ZeroBytes: size}}}
	b.ID = makeID(b.Created, r.newID())
	if err := r.putSealed(context.Background(), backupDir+"/"+b.ID, "backup", b); err != nil {
		t.Fatal(err)
	}
	return b.ID
}

// A chain in a bucket, over a network that loses connections, restores to each point
// in time.
func TestIncrementalInS3(t *testing.T) {
	server := s3test.Start(t)
	faults := []s3test.Fault{s3test.Busy, s3test.Cut, s3test.HalfReply, s3test.LostReply}
	proxy := s3test.NewProxy(t, server, func(n int, _ *http.Request) s3test.Fault {
		if n%5 != 0 {
			return s3test.None
		}
		return faults[n/5%len(faults)]
	})
	r := bucket(t, server.Location(proxy.Addr, "repo"))
	d := newDisk(t, "v", image(1, 60))
	rnd := rand.New(rand.NewPCG(3, 3))
	base := ""
	points := make(map[string][]byte)
	for range 5 {
		b := create(t, r, CreateOptions{Parallel: 2}, d.source(base))
		wantBase(t, b, base)
		base = b.ID
		points[base] = bytes.Clone(d.content)
		d.scribble(rnd, 3)
	}
	for id, content := range points {
		wantRestored(t, r, id, content)
	}
	if n := proxy.Faults(); n < 10 {
		t.Errorf("only %d requests came to harm", n)
	}
}

// What an incremental backup asks of the repository does not follow how many backups
// there are.
func TestIncrementalCostsTheSame(t *testing.T) {
	r, m := memRepo(t)
	d := newDisk(t, "v", image(1, 200))
	b := create(t, r, CreateOptions{}, d.source(""))
	cost := func(seed uint32) (n int) {
		t.Helper()
		other := m.Open()
		var mu sync.Mutex
		other.After = func(storetest.Op) error {
			mu.Lock()
			defer mu.Unlock()
			n++
			return nil
		}
		d.write(int64(seed)*testChunk, []byte{0xff, byte(seed)})
		b = create(t, view(t, other, seed), CreateOptions{}, d.source(b.ID))
		return n
	}
	first := cost(2)
	for i := range uint32(20) {
		if n := cost(3 + i); n > first+3 { // another pack may have a longer directory
			t.Fatalf("backup %d took %d operations of the store, the first %d", i, n, first)
		}
	}
}
