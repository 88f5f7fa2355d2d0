package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/swapback/swapback/backup/internal/store"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openFolder(t *testing.T, path string) *store.Folder {
	t.Helper()
	f, err := store.OpenFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFolderConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (store.Store, func() store.Store) {
		path := t.TempDir()
		another := func() store.Store { return openFolder(t, path) }
		return another(), another
	})
}

func TestMemConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (store.Store, func() store.Store) {
		m := storetest.NewMem()
		return m, func() store.Store { return m.Open() }
	})
}

func TestMakeFolderMakesParents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "c")
	for range 2 {
		f, err := store.MakeFolder(path)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("folder is %v, %v", st, err)
	}
}

// A commit is worth its name only when data is synced before the rename and the
// folder after it.
func TestFolderOrderOfSteps(t *testing.T) {
	f := openFolder(t, t.TempDir())
	var steps []string
	store.SetHook(f, func(step, name string) error {
		steps = append(steps, step+" "+name)
		return nil
	})
	storetest.Put(t, f, "packs/ab/1", store.Exclusive, []byte("xy"))
	storetest.Put(t, f, "packs/ab/2", store.Replace, []byte("xy"))
	if err := f.Delete(t.Context(), "packs/ab/1", "packs/ab/2"); err != nil {
		t.Fatal(err)
	}
	pid := strings.Split(strings.TrimPrefix(steps[2], "create tmp/"), "-")[0]
	got := strings.ReplaceAll(strings.Join(steps, "\n"), pid+"-", "")
	want := `mkdir tmp
syncdir .
create tmp/1
write packs/ab/1
write packs/ab/1
mkdir packs
syncdir .
mkdir packs/ab
syncdir packs
sync packs/ab/1
rename packs/ab/1
syncdir packs/ab
create tmp/2
write packs/ab/2
write packs/ab/2
sync packs/ab/2
rename packs/ab/2
syncdir packs/ab
unlink packs/ab/1
unlink packs/ab/2
syncdir packs/ab`
	if got != want {
		t.Errorf("steps are\n%s\nwant\n%s", got, want)
	}
}

// Whatever step fails, the object is there whole or not at all, the error keeps
// the errno, and nothing is left in tmp.
func TestFolderFailingSteps(t *testing.T) {
	for fail := 1; ; fail++ {
		path := t.TempDir()
		f := openFolder(t, path)
		n := 0
		store.SetHook(f, func(step, name string) error {
			n++
			if n == fail {
				return syscall.ENOSPC
			}
			return nil
		})
		err := func() error {
			w, err := f.Create(t.Context(), "packs/ab/1", store.Exclusive)
			if err != nil {
				return err
			}
			defer w.Abort()
			if _, err := w.Write([]byte("hello")); err != nil {
				return err
			}
			return w.Commit(t.Context())
		}()
		if err == nil {
			if n >= fail {
				t.Fatalf("step %d failed and nobody noticed", fail)
			}
			return
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("step %d: error is %v", fail, err)
		}
		again := openFolder(t, path)
		size, err := again.Size(t.Context(), "packs/ab/1")
		if err == nil && size != 5 || err != nil && !errors.Is(err, store.ErrNotExist) {
			t.Errorf("step %d: size %d, %v", fail, size, err)
		}
		if left, _ := filepath.Glob(path + "/tmp/*"); len(left) > 0 {
			t.Errorf("step %d: left %v", fail, left)
		}
	}
}

func TestFolderCleanRemovesTheDead(t *testing.T) {
	path := t.TempDir()
	f := openFolder(t, path)
	storetest.Put(t, f, "x", store.Exclusive, nil) // makes tmp
	dead := filepath.Join(path, "tmp", "1-1")
	if err := os.WriteFile(dead, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Clean(t.Context()); n != 5 || err != nil {
		t.Errorf("clean freed %d, %v", n, err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dead file: %v", err)
	}
}

// A lease can be taken on a full disk, or a full disk could neither be restored
// from nor be freed.
func TestFolderHoldOnAFullDisk(t *testing.T) {
	f := openFolder(t, t.TempDir())
	store.SetHook(f, func(step, name string) error {
		if step == "write" {
			return syscall.ENOSPC
		}
		return nil
	})
	h, err := f.Hold(t.Context(), "leases/1", []byte("me"))
	if err != nil {
		t.Fatal(err)
	}
	if held, err := f.Held(t.Context(), "leases/1"); !held || err != nil {
		t.Errorf("held is %v, %v", held, err)
	}
	if err := h.Release(); err != nil {
		t.Error(err)
	}
}

// Links in a repository that somebody else made must not lead out of it.
func TestFolderLinksDoNotLeadOut(t *testing.T) {
	outside, path := t.TempDir(), t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tmp", "packs", "leases", "locks"} {
		if err := os.Symlink(outside, filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	f := openFolder(t, path)
	if _, err := f.Create(t.Context(), "backups/1", store.Replace); err == nil {
		t.Error("a writer went through the link tmp")
	}
	if err := f.Delete(t.Context(), "packs/victim"); err == nil {
		t.Error("a removal went through the link packs")
	}
	if _, err := f.Lock(t.Context(), "locks/victim"); err == nil {
		t.Error("a lock went through the link locks")
	}
	if err := f.ReadAt(t.Context(), "packs/victim", make([]byte, 1), 0); err == nil {
		t.Error("a read went through the link packs")
	}
	if _, err := f.Clean(t.Context()); err == nil {
		t.Error("clean went through the link tmp")
	}
	if b, err := os.ReadFile(victim); string(b) != "precious" {
		t.Errorf("victim is %q, %v", b, err)
	}
}

func TestFolderReadsRegularFilesOnly(t *testing.T) {
	path := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(path, "config"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := openFolder(t, path).ReadAt(t.Context(), "config", make([]byte, 1), 0); err == nil {
		t.Error("a FIFO was read")
	}
}

func TestFolderPath(t *testing.T) {
	for _, tt := range []struct{ location, want string }{
		{"/a/b", "/a/b"}, {"rel", "rel"}, {"file:///a/b%20c", "/a/b c"}, {"file://localhost/a", "/a"},
		{"", ""}, {"s3://bucket/x", ""}, {"file://host/a", ""}, {"file://", ""},
	} {
		got, err := store.FolderPath(tt.location)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q is %q, %v", tt.location, got, err)
		}
		if err != nil && !errors.Is(err, store.ErrScheme) {
			t.Errorf("%q: %v is not ErrScheme", tt.location, err)
		}
	}
}
