package backup

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
	"github.com/swapback/swapback/backup/internal/store/s3test"
	"github.com/swapback/swapback/backup/internal/store/storetest"
	"github.com/swapback/swapback/backup/internal/table"
)

// paper says what an encrypted repository takes, by its formats alone, for a volume
// of which nothing is zero and nothing can be compressed.
type paper struct {
	format.Shape
	packSize int64
}

func onPaper(size, chunk, packSize int64) paper {
	s, err := format.ShapeOf(size, chunk)
	if err != nil {
		panic(err)
	}
	return paper{s, packSize}
}

// nodes is how many nodes of each level, from 1, lie above n chunks that are as far
// apart as can be.
func (p paper) nodes(n int64) (counts []int64) {
	for level := 1; level <= p.Levels; level++ {
		counts = append(counts, min(n, (p.Size+p.Span(level)-1)/p.Span(level)))
	}
	return counts
}

func sum(counts []int64) (n int64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// table is how many bytes all nodes have.
func (p paper) table() int64 {
	n := p.nodes(p.Chunks())
	return format.EntrySize * (p.Chunks() + sum(n[:len(n)-1]))
}

const (
	blobExtra = format.BlobHeaderSize + format.DirEntrySize + format.SealOverhead
	packExtra = format.PackHeaderSize + format.FooterSize
)

// packs is how many packs n blobs of so many bytes fill, and what they have in all.
func (p paper) packs(n, blob int64) (packs, bytes int64) {
	one := blob + format.BlobHeaderSize + format.SealOverhead
	each := (p.packSize - format.PackHeaderSize + one - 1) / one
	packs = (n + each - 1) / each
	return packs, n*(blob+blobExtra) + packs*packExtra
}

// s3Requests is what an object takes to be written to a bucket: whether it is there,
// and one request, or the beginning, the parts and the end of an upload.
func s3Requests(bytes int64) int64 {
	const part = 8 << 20
	if bytes <= part {
		return 2
	}
	return 3 + (bytes+part-1)/part
}

// restoreReads bounds the reads of packs that restoring the whole volume takes: of
// every node, and of every task's chunks, of which those in two packs take two.
func (p paper) restoreReads() int64 {
	packs, _ := p.packs(p.Chunks(), p.ChunkSize)
	return sum(p.nodes(p.Chunks())) + (p.Size+taskBytes-1)/taskBytes + packs
}

// What the formats say on paper is what repositories take.
func TestPaper(t *testing.T) {
	r, m := memRepo(t)
	r.packSize = 40 * testChunk
	content := make([]byte, 1100*testChunk)
	rand.NewChaCha8([32]byte{1}).Read(content)
	d := newDisk(t, "v", content)
	p := onPaper(d.size, testChunk, r.packSize)
	b := create(t, r, CreateOptions{}, d.source(""))
	chunks, nodes := packBytes(t, m)
	wantPacks, wantBytes := p.packs(p.Chunks(), testChunk)
	if chunks.packs != wantPacks || chunks.bytes != wantBytes || chunks.blobs != p.Chunks() {
		t.Errorf("chunks: %+v, want %d packs of %d bytes", chunks, wantPacks, wantBytes)
	}
	if n := sum(p.nodes(p.Chunks())); nodes.blobs != n || n != 3 {
		t.Errorf("%d nodes, want %d", nodes.blobs, n)
	}
	// Hashes can't be compressed, the rest of a node well.
	most := p.table() + nodes.blobs*blobExtra + nodes.packs*packExtra
	if nodes.bytes > most || nodes.bytes < most/2 {
		t.Errorf("nodes have %d bytes, at most %d was wanted", nodes.bytes, most)
	}
	t.Logf("nodes are stored in %.2f of their bytes", float64(nodes.bytes)/float64(most))

	other, reads := m.Open(), int64(0)
	var mu sync.Mutex
	other.After = func(op storetest.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(op.Name, pack.Dir+"/") {
			reads++
		}
		return nil
	}
	if res := restore(t, view(t, other, 2), RestoreOptions{Backup: b.ID, Target: dirty(t, len(content))}); res.DataBytes != p.Size {
		t.Errorf("restored: %+v", res)
	}
	if reads > p.restoreReads() || reads < p.restoreReads()/2 {
		t.Errorf("%d reads to restore, at most %d were wanted", reads, p.restoreReads())
	}

	// An incremental backup writes the nodes above what changed.
	for _, i := range []int64{5, 6, 1050} {
		d.write(i*testChunk, []byte("changed"))
	}
	create(t, r, CreateOptions{}, d.source(b.ID))
	after, nodesAfter := packBytes(t, m)
	if got, want := nodesAfter.blobs-nodes.blobs, sum(p.nodes(2)); got != want {
		t.Errorf("%d new nodes, want %d", got, want)
	}
	if after.blobs != chunks.blobs+3 {
		t.Errorf("%d new chunks", after.blobs-chunks.blobs)
	}
}

// Of a sparse volume there are the nodes above its chunks.
func TestPaperOfASparseVolume(t *testing.T) {
	r, m := memRepo(t)
	d := newSparse(t, "v", 2000*1024*testChunk)
	zero := zeroBackup(t, r, d.plain(nil).Volume, d.size)
	p := onPaper(d.size, testChunk, r.packSize)
	const n = 50
	for i := range int64(n) {
		d.write(i*40*1024*testChunk, []byte{byte(i + 1)})
	}
	b := create(t, r, CreateOptions{}, d.source(zero))
	_, nodes := packBytes(t, m)
	if want := sum(p.nodes(n)); nodes.blobs != want || want != n+2+1 {
		t.Errorf("%d nodes, want %d", nodes.blobs, want)
	}
	if v := b.Volumes[0]; v.DataBytes != n*testChunk {
		t.Errorf("%+v", v)
	}
}

// inPacks is what packs of one kind have.
type inPacks struct{ packs, blobs, bytes int64 }

func packBytes(t testing.TB, m *storetest.Mem) (chunks, nodes inPacks) {
	t.Helper()
	for _, name := range packNames(m) {
		id, err := format.ParseID(name[strings.LastIndexByte(name, '/')+1:])
		if err != nil {
			t.Fatal(err)
		}
		blobs := int64(0)
		h, err := pack.ReadDirectory(t.Context(), m, id, func(int, format.Ref) { blobs++ })
		if err != nil {
			t.Fatal(err)
		}
		in := &chunks
		if h.Kind == format.KindNode {
			in = &nodes
		}
		in.packs++
		in.blobs += blobs
		in.bytes += int64(len(m.Object(name)))
	}
	return chunks, nodes
}

// The requests that a bucket sees of a backup are those on paper, and a few.
func TestPaperOfRequests(t *testing.T) {
	long(t)
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server, func(int, *http.Request) s3test.Fault { return s3test.None })
	count := func() (write, read int64) {
		return int64(proxy.Count("PUT") + proxy.Count("POST") + proxy.Count("HEAD")), int64(proxy.Count("GET"))
	}
	st, err := store.OpenS3(server.Location(proxy.Addr, "repo"), store.S3Options{Creds: s3test.Creds()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := initStore(t.Context(), st, InitOptions{Recipients: []string{recipient}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	content := make([]byte, 70<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	d := newDisk(t, "v", content)
	w0, _ := count()
	b := create(t, r, CreateOptions{}, d.source(""))
	w1, g1 := count()
	// Two full packs of chunks and one that is not, one of nodes; lease and manifest,
	// and whether the lease is still there.
	p := onPaper(d.size, r.ChunkSize(), format.PackSize)
	packs, bytes := p.packs(p.Chunks(), p.ChunkSize)
	if packs != 3 {
		t.Fatalf("%d packs", packs)
	}
	_, full := p.packs(32, p.ChunkSize)
	want := 2*s3Requests(full) + s3Requests(bytes-2*full) + s3Requests(1) + 2*s3Requests(1) + 1
	if got := w1 - w0; got < want || got > want+3 {
		t.Errorf("a full backup made %d requests that write or ask for sizes, want %d", got, want)
	}
	d.write(5<<20, []byte("changed"))
	b = create(t, r, CreateOptions{}, d.source(b.ID))
	wantBase(t, b, b.Volumes[0].Base)
	w2, g2 := count()
	// A pack of each kind, lease and manifest as before; sizes of the manifest, of
	// the pack of the sample, of that again and of the lease. Read are the manifest,
	// the root, and the sample with the ends and the directory of its pack.
	if w, g := w2-w1, g2-g1; w > 2*s3Requests(1)+2*s3Requests(1)+4+3 || g > 1+1+4+3 {
		t.Errorf("an incremental backup made %d requests that write or ask for sizes, and %d that read", w, g)
	}
	wantRestored(t, r, b.ID, d.content)
}

// The table in docs/performance.md.
func Example_paper() {
	const (
		mib, gib, tib, pib = 1 << 20, 1 << 30, 1 << 40, 1 << 50
		changed            = gib
	)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	row := func(name string, f func(p paper) string) {
		fmt.Fprintf(w, "| %s", name)
		for _, size := range []int64{tib, 100 * tib, pib} {
			fmt.Fprintf(w, "\t| %s", f(onPaper(size, DefaultChunkSize, format.PackSize)))
		}
		fmt.Fprintln(w, "\t|")
	}
	size := func(n int64) string {
		for _, u := range []struct {
			name string
			n    int64
		}{{"PiB", pib}, {"TiB", tib}, {"GiB", gib}, {"MiB", mib}} {
			if n >= u.n {
				return fmt.Sprintf("%.3g %s", float64(n)/float64(u.n), u.name)
			}
		}
		return fmt.Sprintf("%d B", n)
	}
	nodePacks := func(p paper, nodes int64) (packs, bytes int64) { return p.packs(nodes, format.MaxNode) }
	row("size of the volume", func(p paper) string { return size(p.Size) })
	row("---", func(paper) string { return "---:" })
	row("chunks", func(p paper) string { return fmt.Sprint(p.Chunks()) })
	row("levels of the table", func(p paper) string { return fmt.Sprint(p.Levels) })
	row("nodes of the table", func(p paper) string { return fmt.Sprint(sum(p.nodes(p.Chunks()))) })
	row("table, at most", func(p paper) string {
		_, bytes := nodePacks(p, sum(p.nodes(p.Chunks())))
		return size(bytes)
	})
	row("headers and directories of packs", func(p paper) string {
		_, bytes := p.packs(p.Chunks(), p.ChunkSize)
		return size(bytes - p.Size)
	})
	row("packs", func(p paper) string {
		a, _ := p.packs(p.Chunks(), p.ChunkSize)
		b, _ := nodePacks(p, sum(p.nodes(p.Chunks())))
		return fmt.Sprint(a + b)
	})
	row("full backup: requests to S3", func(p paper) string {
		a, bytes := p.packs(p.Chunks(), p.ChunkSize)
		b, _ := nodePacks(p, sum(p.nodes(p.Chunks())))
		return fmt.Sprint((a + b) * s3Requests(bytes/a))
	})
	row("restore: requests to S3, at most", func(p paper) string { return fmt.Sprint(p.restoreReads()) })
	// 1 GiB in 1024 chunks as far apart as can be.
	nodes := func(p paper) int64 { return sum(p.nodes(changed / p.ChunkSize)) }
	row("1 GiB changed, scattered: nodes read and written", func(p paper) string { return fmt.Sprint(nodes(p)) })
	row("… bytes written beside the data, at most", func(p paper) string {
		_, a := p.packs(changed/p.ChunkSize, p.ChunkSize)
		_, b := nodePacks(p, nodes(p))
		return size(a + b - changed)
	})
	row("… requests to S3, at most", func(p paper) string {
		a, bytes := p.packs(changed/p.ChunkSize, p.ChunkSize)
		b, _ := nodePacks(p, nodes(p))
		sample := int64(proofMost * (5 + p.Levels - 1 + 1)) // and whether its pack is still there
		return fmt.Sprint((a+b)*s3Requests(bytes/a) + nodes(p) + baseNodes + sample + 12)
	})
	row("1 GiB changed, in one piece: nodes read and written", func(p paper) string {
		return fmt.Sprint(2*(p.Levels-1) + 1) // it may lie in two of each level
	})
	w.Flush()
	// Output:
	// | size of the volume                                  | 1 TiB    | 100 TiB   | 1 PiB      |
	// | ---                                                 | ---:     | ---:      | ---:       |
	// | chunks                                              | 1048576  | 104857600 | 1073741824 |
	// | levels of the table                                 | 2        | 3         | 3          |
	// | nodes of the table                                  | 1025     | 102501    | 1049601    |
	// | table, at most                                      | 64.2 MiB | 6.27 GiB  | 64.2 GiB   |
	// | headers and directories of packs                    | 144 MiB  | 14.1 GiB  | 144 GiB    |
	// | packs                                               | 32771    | 3277001   | 33556483   |
	// | full backup: requests to S3                         | 262168   | 26216008  | 268451864  |
	// | restore: requests to S3, at most                    | 295937   | 29593701  | 303039489  |
	// | 1 GiB changed, scattered: nodes read and written    | 1025     | 1125      | 2049       |
	// | … bytes written beside the data, at most            | 64.3 MiB | 70.6 MiB  | 128 MiB    |
	// | … requests to S3, at most                           | 1493     | 1609      | 2549       |
	// | 1 GiB changed, in one piece: nodes read and written | 3        | 5         | 5          |
}

// What is on paper as a bound of nodes holds for a table as a whole.
func TestPaperCountsNodes(t *testing.T) {
	for _, size := range []int64{1, testChunk, 1024 * testChunk, 1024*testChunk + 1, 3000*1024*testChunk + 5} {
		p := onPaper(size, testChunk, format.PackSize)
		n := int64(0)
		b := table.NewBuilder(p.Shape, nil, func(node []byte, _ format.Ref) (format.Ref, error) {
			n++
			return format.Ref{Stored: uint32(len(node)), Length: uint32(len(node)), Kind: format.KindNode}, nil
		})
		for i := range p.Chunks() {
			c := uint32(p.Covers(1, i*testChunk))
			if err := b.Append(format.Ref{Stored: c, Length: c, Kind: format.KindChunk}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.Finish(); err != nil {
			t.Fatal(err)
		}
		if want := sum(p.nodes(p.Chunks())); n != want {
			t.Errorf("%d bytes: %d nodes, want %d", size, n, want)
		}
	}
}
