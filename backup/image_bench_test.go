package backup

import (
	"io"
	"testing"
)

// BenchmarkImage reads an image from its beginning to its end, as a block device is
// asked for it, and its first bytes only, as mounting it does.
func BenchmarkImage(b *testing.B) {
	path, size := benchImage(b)
	r := benchRepo(b)
	if _, err := r.Create(b.Context(), []Source{{Path: path, Volume: VolumeRef{Name: "a"}}}, CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	for name, c := range map[string]struct{ bytes, ahead int64 }{"all": {size, 0}, "all, nothing ahead": {size, -1}, "first": {4096, 0}} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(c.bytes)
			b.ReportAllocs()
			p := make([]byte, 256<<10)
			for b.Loop() {
				im, err := r.OpenImage(b.Context(), "latest", "", ImageOptions{ReadAhead: c.ahead})
				if err != nil {
					b.Fatal(err)
				}
				for at := int64(0); at < c.bytes; at += int64(len(p)) {
					if _, err := im.ReadAt(b.Context(), p[:min(int64(len(p)), c.bytes-at)], at); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
				if err := im.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
