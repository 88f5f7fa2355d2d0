package backup

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/backup/internal/device"
	"github.com/swapback/swapback/backup/internal/store"
	"github.com/swapback/swapback/backup/internal/store/s3test"
	"github.com/swapback/swapback/soak/heap"
)

// bucket opens a repository in a bucket, making it first when there is none.
func bucket(t *testing.T, location string) *Repository {
	t.Helper()
	st, err := store.OpenS3(location, store.S3Options{Creds: s3test.Creds()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := openStore(t.Context(), st, secretOf(st))
	if err != nil {
		r, err = initStore(t.Context(), st, InitOptions{ChunkSize: testChunk, Recipients: []string{recipient}})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	r.packSize = testPack
	return r
}

// A restore from S3 is exact over a network that loses connections, is exact with
// objects that are lost for good but for what they had, and one with Delta fetches
// only what the target lacks.
func TestRestoreFromS3(t *testing.T) {
	server := s3test.Start(t)
	content := image(1, 150)
	b := create(t, bucket(t, server.Location("", "repo")), CreateOptions{}, source(t, "a", content))

	faults := []s3test.Fault{s3test.Busy, s3test.Cut, s3test.HalfReply, s3test.Slow, s3test.LostReply}
	proxy := s3test.NewProxy(t, server, func(n int, _ *http.Request) s3test.Fault {
		if n%4 != 0 {
			return s3test.None
		}
		return faults[n/4%len(faults)]
	})
	bad := bucket(t, server.Location(proxy.Addr, "repo"))
	target := dirty(t, len(content))
	restore(t, bad, RestoreOptions{Backup: b.ID, Target: target, VerifyAfter: true})
	wantContent(t, "a bad network", target, content)
	if n := proxy.Faults(); n < 10 {
		t.Errorf("only %d requests came to harm", n)
	}

	r := bucket(t, server.Location("", "repo"))
	names, err := r.store.List(t.Context(), "packs")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range names {
		if strings.HasSuffix(info.Name, b.Volumes[0].Table.Pack) {
			continue
		}
		if err := r.store.Delete(t.Context(), info.Name); err != nil {
			t.Fatal(err)
		}
		have := append([]byte(nil), content...)
		have[0] ^= 1
		target := write(t, have)
		res, err := r.Restore(t.Context(), RestoreOptions{Backup: b.ID, Target: target})
		wantErr(t, "a lost object", err, ErrDamaged, info.Name)
		for _, bad := range res.Bad {
			if bad.Object != info.Name {
				t.Errorf("range %+v, lost is %s", bad, info.Name)
			}
			clear(have[bad.Offset:][:bad.Length])
		}
		if res.Bad[0].Offset != 0 {
			have[0] ^= 1
		}
		wantContent(t, "a lost object", target, have)
		res = restore(t, r, RestoreOptions{Backup: b.ID, Target: write(t, content), Delta: true})
		if res.ReadBytes != 0 {
			t.Errorf("a restore of nothing read %d bytes", res.ReadBytes)
		}
		return
	}
	t.Error("there is no pack of chunks")
}

// The buffers of a restore are bounded, however large the chunks are and however
// many workers were asked for.
func TestRestoreMemory(t *testing.T) {
	long(t)
	const chunk, chunks = 16 << 20, 24
	r, err := Init(t.Context(), filepath.Join(t.TempDir(), "repo"), InitOptions{ChunkSize: chunk, Recipients: []string{recipient}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	cc, p := rand.NewChaCha8([32]byte{1}), make([]byte, chunk)
	for range chunks {
		cc.Read(p[:chunk/2]) // the other half is the chunk's before, or zero
		copy(p[chunk/2+100:], p[:1000])
		if _, err := f.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	b := create(t, r, CreateOptions{Parallel: 2}, Source{Path: path, Volume: VolumeRef{Name: "a"}})
	p = nil
	for _, delta := range []bool{false, true} {
		target := filepath.Join(t.TempDir(), "target")
		if err := os.WriteFile(target, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(target, chunk*chunks); err != nil {
			t.Fatal(err)
		}
		var rerr error
		top := heap.Peak(func() {
			_, rerr = r.Restore(t.Context(), RestoreOptions{Backup: b.ID, Target: target, Parallel: maxParallel, Delta: delta, VerifyAfter: true})
		})
		if rerr != nil {
			t.Fatal(rerr)
		}
		t.Logf("delta %v: at most %d MiB on the heap", delta, top>>20)
		if limit := uint64(readMemory + 64<<20); top > limit {
			t.Errorf("delta %v: %d MiB lay on the heap, more than %d", delta, top>>20, limit>>20)
		}
		sameFiles(t, fmt.Sprintf("delta %v", delta), path, target)
	}
}

// sameFiles compares two files without holding them in memory.
func sameFiles(t *testing.T, what, a, b string) {
	t.Helper()
	f, err := device.OpenSource(a)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g, err := device.OpenSource(b)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	p, q := device.Buffer(1<<20), device.Buffer(1<<20)
	for off := int64(0); off < f.Size(); off += int64(len(p)) {
		_, err := f.ReadAt(p, off)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.ReadAt(q, off); err != nil || string(p) != string(q) {
			t.Errorf("%s: they differ in the MiB at %d, %v", what, off, err)
			return
		}
	}
}
