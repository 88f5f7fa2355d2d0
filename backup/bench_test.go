package backup

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// benchImage is a file of 768 MiB: a third zero, a third compressible, a third
// random, in pieces of 1 MiB.
func benchImage(b *testing.B) (path string, size int64) {
	const pieces = 768
	path = filepath.Join(b.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	cc := rand.NewChaCha8([32]byte{1})
	words := make([]byte, 16*4096)
	cc.Read(words)
	p := make([]byte, 1<<20)
	for i := range pieces {
		switch i % 3 {
		case 0:
			clear(p)
		case 1:
			// Words in random order: about 5:1.
			for j := 0; j < len(p); j += 16 {
				copy(p[j:j+16], words[int(cc.Uint64()%4096)*16:])
			}
		case 2:
			cc.Read(p)
		}
		if _, err := f.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return path, pieces << 20
}

func benchRepo(b *testing.B) *Repository {
	b.Helper()
	r, err := Init(b.Context(), filepath.Join(b.TempDir(), "repo"), InitOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r
}

func BenchmarkCreate(b *testing.B) {
	path, size := benchImage(b)
	src := []Source{{Path: path, Volume: VolumeRef{Name: "a"}}}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		r := benchRepo(b)
		b.StartTimer()
		bk, err := r.Create(b.Context(), src, CreateOptions{})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(bk.StoredBytes())/float64(size), "stored/size")
		b.StopTimer()
		os.RemoveAll(r.Location())
		b.StartTimer()
	}
}

func BenchmarkCreateUnchanged(b *testing.B) {
	path, size := benchImage(b)
	src := []Source{{Path: path, Volume: VolumeRef{Name: "a"}}}
	r := benchRepo(b)
	if _, err := r.Create(b.Context(), src, CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		if _, err := r.Create(b.Context(), src, CreateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRestore(b *testing.B) {
	for name, verify := range map[string]bool{"plain": false, "verified": true} {
		b.Run(name, func(b *testing.B) {
			path, size := benchImage(b)
			r := benchRepo(b)
			if _, err := r.Create(b.Context(), []Source{{Path: path, Volume: VolumeRef{Name: "a"}}}, CreateOptions{}); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Restore(b.Context(), RestoreOptions{Backup: "latest", Target: path, VerifyAfter: verify}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCopy is what the others are measured against: a copy with fsync.
func BenchmarkCopy(b *testing.B) {
	path, size := benchImage(b)
	target := filepath.Join(b.TempDir(), "copy")
	b.SetBytes(size)
	for b.Loop() {
		in, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		out, err := os.Create(target)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(struct{ io.Writer }{out}, in); err != nil {
			b.Fatal(err)
		}
		if err := out.Sync(); err != nil {
			b.Fatal(err)
		}
		in.Close()
		out.Close()
	}
}
