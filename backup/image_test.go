package backup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// spanChunks is how many chunks a node of the lowest level names.
const spanChunks = 1024

// tall makes the content of a volume whose table has two levels: little of it is
// data, around the ends of the nodes.
func tall(seed uint64) []byte {
	b := make([]byte, (spanChunks+40)*testChunk+4096)
	data := image(seed, 40)
	copy(b, data[:20*testChunk])
	copy(b[(spanChunks-10)*testChunk:], data[:20*testChunk])
	copy(b[len(b)-20*testChunk:], data[20*testChunk:])
	return b
}

func openImage(t testing.TB, r *Repository, o ImageOptions) *Image {
	t.Helper()
	im, err := r.OpenImage(t.Context(), "latest", "", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	})
	return im
}

// smallCache holds only a few chunks.
const smallCache = 24 * testChunk

// Whatever is read, of whatever length and from however many goroutines, is what
// the volume held; also when little fits into the cache.
func TestImageReadsAtRandom(t *testing.T) {
	for name, content := range map[string][]byte{"flat": image(3, 60), "tall": tall(4), "empty": make([]byte, 3*testChunk)} {
		t.Run(name, func(t *testing.T) {
			r, _ := memRepo(t)
			create(t, r, CreateOptions{}, source(t, "a", content))
			im := openImage(t, r, ImageOptions{CacheBytes: smallCache, Parallel: 3})
			if im.Size() != int64(len(content)) || im.Volume().Name != "a" || im.Backup().ID == "" || im.ChunkSize() != testChunk {
				t.Fatalf("image of %d bytes, %+v", im.Size(), im.Volume())
			}
			var tried atomic.Int64
			var readers sync.WaitGroup
			for i := range 4 {
				readers.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(i), 5))
					at := int64(0)
					for n := range 300 {
						size := 1 + rnd.IntN(3*testChunk)
						if n%3 == 0 { // every third goes on where the last ended
							at = rnd.Int64N(int64(len(content)))
						}
						at += readAndCompare(t, im, content, at, size, &tried)
						if at == int64(len(content)) {
							at = 0
						}
					}
				})
			}
			readers.Wait()
			if tried.Load() == 0 {
				t.Error("nothing was ever read from memory")
			}
			if d := im.Damage(); len(d) > 0 {
				t.Errorf("damage: %+v", d)
			}
		})
	}
}

// readAndCompare reads once, perhaps from memory, and returns how much there was.
func readAndCompare(t *testing.T, im *Image, content []byte, at int64, size int, tried *atomic.Int64) int64 {
	want := content[at:min(at+int64(size), int64(len(content)))]
	got := bytes.Repeat([]byte{0xd1}, size)
	if im.TryReadAt(got, at) {
		tried.Add(1)
		if len(want) < size || !bytes.Equal(got, want) {
			t.Errorf("%d bytes at %d differ, from memory", size, at)
		}
		return int64(size)
	}
	n, err := im.ReadAt(t.Context(), got, at)
	if n != len(want) || (err == io.EOF) != (n < size) || err != nil && err != io.EOF {
		t.Errorf("%d bytes at %d: %d, %v", size, at, n, err)
	}
	if !bytes.Equal(got[:n], want) {
		t.Errorf("%d bytes at %d differ", size, at)
	}
	return int64(n)
}

func TestImageErrors(t *testing.T) {
	r, _ := memRepo(t)
	_, err := r.OpenImage(t.Context(), "latest", "", ImageOptions{})
	wantErr(t, "no backup", err, ErrNotFound, "latest")
	create(t, r, CreateOptions{}, source(t, "a", image(1, 4)), source(t, "b", image(2, 4)))
	_, err = r.OpenImage(t.Context(), "latest", "", ImageOptions{})
	wantErr(t, "two volumes", err, ErrNoVolume, "tank/a, tank/b")
	_, err = r.OpenImage(t.Context(), "latest", "b", ImageOptions{CacheBytes: testChunk})
	wantErr(t, "a tiny cache", err, ErrInvalid, "at least 1 MiB")
	im, err := r.OpenImage(t.Context(), "latest", "b", ImageOptions{CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.ReadAt(t.Context(), make([]byte, 1), -1); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if n, err := im.ReadAt(t.Context(), make([]byte, 1), im.Size()); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	if im.TryReadAt(make([]byte, 1), im.Size()) || im.TryReadAt(make([]byte, 1), -1) {
		t.Error("read outside of the volume")
	}
	for range 2 {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := im.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, ErrImageClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// random makes a volume of chunks that are all different and not zero.
func random(seed byte, chunks int) []byte {
	b := make([]byte, chunks*testChunk)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func readAll(t *testing.T, im *Image, content []byte, step int) {
	t.Helper()
	p := make([]byte, step)
	for at := 0; at < len(content); at += step {
		n, err := im.ReadAt(t.Context(), p, int64(at))
		if want := content[at:min(at+step, len(content))]; err != nil && err != io.EOF || !bytes.Equal(p[:n], want) {
			t.Fatalf("at %d: %d bytes, %v", at, n, err)
		}
	}
}

// A sequential reader finds all but the first two chunks fetched ahead, in few
// fetches; a random one, or one that wants none of it, has nothing fetched ahead.
func TestImageReadsAhead(t *testing.T) {
	const chunks = 96
	r, _ := memRepo(t)
	r.packSize = 64 * testChunk
	content := random(1, chunks)
	create(t, r, CreateOptions{}, source(t, "a", content))
	cases := map[string]struct {
		o     ImageOptions
		ahead int64
	}{
		"default": {ImageOptions{CacheBytes: 16 << 20}, chunks - 2},
		"alone":   {ImageOptions{CacheBytes: 16 << 20, Parallel: 1}, chunks - 2},
		"none":    {ImageOptions{CacheBytes: 16 << 20, ReadAhead: -1}, 0},
		"one":     {ImageOptions{CacheBytes: 16 << 20, ReadAhead: testChunk}, chunks - 2},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			im := openImage(t, r, c.o)
			readAll(t, im, content, 10_000)
			readAll(t, im, content, 10_000) // all in memory now
			s := im.Stats()
			if s.Ahead != c.ahead || s.Chunks != chunks || s.Wasted != 0 || s.Nodes != 1 {
				t.Errorf("%+v", s)
			}
			if name == "default" && s.Fetches > chunks/3 {
				t.Errorf("%d chunks took %d fetches", chunks, s.Fetches)
			}
		})
	}
	t.Run("random", func(t *testing.T) {
		im := openImage(t, r, ImageOptions{CacheBytes: 16 << 20})
		p := make([]byte, 4096)
		for i := range chunks / 2 {
			at := int64(i*2*37%chunks) * testChunk // never two chunks beside each other
			if _, err := im.ReadAt(t.Context(), p, at); err != nil || !bytes.Equal(p, content[at:][:4096]) {
				t.Fatalf("at %d: %v", at, err)
			}
		}
		if s := im.Stats(); s.Ahead != 0 || s.Chunks != chunks/2 {
			t.Errorf("%+v", s)
		}
	})
	// What has to be dropped unread makes readers ask for less: many at once, for
	// whom the cache is too small, fetch little more than they read.
	t.Run("many", func(t *testing.T) {
		im := openImage(t, r, ImageOptions{CacheBytes: smallCache})
		p := make([]byte, testChunk)
		const readers = 8
		for i := range chunks / readers {
			for reader := range readers {
				at := int64(reader*chunks/readers+i) * testChunk
				if _, err := im.ReadAt(t.Context(), p, at); err != nil || !bytes.Equal(p, content[at:][:testChunk]) {
					t.Fatalf("at %d: %v", at, err)
				}
			}
		}
		if s := im.Stats(); s.Chunks > 2*chunks {
			t.Errorf("%+v", s)
		}
	})
}

// The next node of the table is fetched ahead, too, and holes are passed over.
func TestImageReadsAheadAcrossNodes(t *testing.T) {
	r, _ := memRepo(t)
	content := tall(4)
	create(t, r, CreateOptions{}, source(t, "a", content))
	im := openImage(t, r, ImageOptions{CacheBytes: 32 << 20})
	readAll(t, im, content, testChunk/2)
	s := im.Stats()
	if s.Nodes != 3 || s.Ahead < s.Chunks-4 || s.Chunks > 60 {
		t.Errorf("%+v", s)
	}
	small := openImage(t, r, ImageOptions{CacheBytes: smallCache})
	readAll(t, small, content, testChunk/2)
	if s := small.Stats(); s.Wasted > s.Chunks/4 {
		t.Errorf("with a small cache: %+v", s)
	}
}

// What many want at once is fetched once, and in a small cache, too, nobody waits
// for ever.
func TestImageFetchesOnce(t *testing.T) {
	r, m := memRepo(t)
	content := random(1, 8)
	create(t, r, CreateOptions{}, source(t, "a", content))
	im := openImage(t, r, ImageOptions{ReadAhead: -1})
	if _, err := im.ReadAt(t.Context(), make([]byte, 1), 0); err != nil { // the node
		t.Fatal(err)
	}
	const readers = 20
	arrived, reads := make(chan struct{}, readers), atomic.Int64{}
	m.Before = func(op storetest.Op) error {
		if op.Kind == "read" {
			reads.Add(1)
			for range readers {
				<-arrived
			}
		}
		return nil
	}
	var all sync.WaitGroup
	for i := range readers {
		all.Go(func() {
			p := make([]byte, 100)
			at := int64(5*testChunk + 100*i)
			if im.TryReadAt(p, at) {
				t.Error("it was in memory")
			}
			arrived <- struct{}{}
			if _, err := im.ReadAt(t.Context(), p, at); err != nil || !bytes.Equal(p, content[at:][:100]) {
				t.Errorf("at %d: %v", at, err)
			}
		})
	}
	all.Wait()
	m.Before = nil
	if n := reads.Load(); n != 1 {
		t.Errorf("%d reads of the repository", n)
	}
}

// A damaged chunk, or node, is an error for the bytes below it and for no others,
// and heals when its object does.
func TestImageDamage(t *testing.T) {
	r, m := memRepo(t)
	content := image(1, 24)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	good := m.Clone()
	damaged, healed := 0, 0
	for _, name := range packNames(m) {
		for _, d := range damages {
			size := len(good.Object(name))
			m.SetObject(name, d.do(bytes.Clone(good.Object(name)), size/2))
			im := openImage(t, r, ImageOptions{CacheBytes: smallCache})
			bad := badChunks(t, im, content)
			restored, err := restoreDamaged(t, d.name+" of "+name, m, b.ID, content)
			if (err != nil) != (len(bad) > 0) {
				t.Errorf("%s of %s: %d bad chunks, a restore has %d ranges: %v", d.name, name, len(bad), restored, err)
			}
			var listed int64
			for _, r := range im.Damage() {
				listed += r.Length
				if !strings.HasPrefix(r.Object, "packs/") || r.Reason == "" {
					t.Errorf("%+v", r)
				}
			}
			if len(bad) > 0 && listed == 0 {
				t.Errorf("%s of %s: no damage is listed", d.name, name)
			}
			damaged += len(bad)
			m.SetObject(name, bytes.Clone(good.Object(name)))
			if again := badChunks(t, im, content); len(again) > 0 {
				t.Errorf("%s of %s: chunks %v are bad when the pack is good again", d.name, name, again)
			}
			if len(bad) > 0 && len(im.Damage()) == 0 {
				healed++
			}
		}
	}
	if damaged < 20 || healed < 5 {
		t.Errorf("%d bad chunks, %d times healed", damaged, healed)
	}
}

// Of several nodes of one level each is damaged by itself.
func TestImageDamagedNode(t *testing.T) {
	r, m := memRepo(t)
	content := tall(4)
	create(t, r, CreateOptions{}, source(t, "a", content))
	im := openImage(t, r, ImageOptions{CacheBytes: smallCache})
	var second format.Ref // of the nodes of level 1
	if err := im.shape.DecodeNode(rootNode(t, im), 2, 0, func(_ int64, r format.Ref) error { second = r; return nil }); err != nil {
		t.Fatal(err)
	}
	name := pack.Name(second.Pack)
	m.SetObject(name, damages[0].do(m.Object(name), int(second.Offset)+format.BlobHeaderSize+10))
	bad := badChunks(t, openImage(t, r, ImageOptions{CacheBytes: smallCache}), content)
	if len(bad) != 41 || bad[0] != spanChunks { // down to the tail that is no whole chunk
		t.Errorf("bad chunks: %v", bad)
	}
}

// rootNode reads the root of an image's table.
func rootNode(t *testing.T, im *Image) []byte {
	t.Helper()
	root := *im.root.Load()
	b, err := im.node(t.Context(), keyOf(im.shape.Levels, 0, root), root)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	return bytes.Clone(b.Data()[:root.Length])
}

// badChunks reads all chunks and returns which of them give an error.
func badChunks(t *testing.T, im *Image, content []byte) (bad []int) {
	t.Helper()
	p := make([]byte, testChunk)
	for at := 0; at < len(content); at += testChunk {
		n, err := im.ReadAt(t.Context(), p, int64(at))
		want := content[at:min(at+testChunk, len(content))]
		switch {
		case errors.Is(err, ErrDamaged) && n == 0:
			bad = append(bad, at/testChunk)
		case err != nil && err != io.EOF || !bytes.Equal(p[:n], want):
			t.Fatalf("chunk %d: %v", at/testChunk, err)
		}
	}
	return bad
}

// A repository that can't be reached is no damage, and is tried again.
func TestImageUnreachable(t *testing.T) {
	r, m := memRepo(t)
	content := random(1, 4)
	create(t, r, CreateOptions{}, source(t, "a", content))
	im := openImage(t, r, ImageOptions{})
	down := errors.New("no route to host")
	m.Before = func(op storetest.Op) error {
		if op.Kind == "read" {
			return down
		}
		return nil
	}
	for range 3 {
		if _, err := im.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, down) || errors.Is(err, ErrDamaged) {
			t.Errorf("unreachable: %v", err)
		}
	}
	m.Before = nil
	readAll(t, im, content, 1000)
	if len(im.Damage()) > 0 {
		t.Errorf("damage: %+v", im.Damage())
	}
}

// Close ends reads that wait for the repository.
func TestImageCloseEndsReads(t *testing.T) {
	r, m := memRepo(t)
	create(t, r, CreateOptions{}, source(t, "a", random(1, 4)))
	im := openImage(t, r, ImageOptions{})
	waiting, closed := make(chan struct{}, 8), make(chan struct{})
	m.Before = func(op storetest.Op) error {
		if op.Kind != "read" {
			return nil
		}
		waiting <- struct{}{}
		<-closed
		return context.Canceled
	}
	failed := make(chan error)
	go func() {
		_, err := im.ReadAt(context.Background(), make([]byte, 10), 0)
		failed <- err
	}()
	<-waiting
	context.AfterFunc(im.ctx, func() { close(closed) })
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, ErrImageClosed) {
		t.Error(err)
	}
	m.Before = nil
}

// A reader who leaves does not keep the others from what he has asked for.
func TestImageReaderLeaves(t *testing.T) {
	r, m := memRepo(t)
	content := random(1, 4)
	create(t, r, CreateOptions{}, source(t, "a", content))
	im := openImage(t, r, ImageOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	m.Before = func(op storetest.Op) error {
		if op.Kind == "read" {
			cancel()
		}
		return nil
	}
	if _, err := im.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.Canceled) && err != nil {
		t.Error(err)
	}
	m.Before = nil
	readAll(t, im, content, 1000)
}
