package backup

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRepositoryIsPrivate: what is in a repository is what is on the volumes.
// Whatever the mask for new files is, nobody but its owner can read it.
func TestRepositoryIsPrivate(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	dir := filepath.Join(t.TempDir(), "repo")
	r, err := Init(t.Context(), dir, InitOptions{ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	create(t, r, CreateOptions{}, source(t, "db", image(1, 8)))
	files := 0
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := os.Lstat(path)
		if err == nil && fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %v", path, fi.Mode())
		}
		files++
		return err
	})
	if err != nil || files < 6 {
		t.Errorf("%d files were looked at: %v", files, err)
	}
}
