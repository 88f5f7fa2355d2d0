package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Folder is a Store in a folder of a file system.
//
// A file is written under tmp/, synced, renamed to its name, and then the folder
// that holds the name is synced. Files of writers and holders carry a flock(2)
// as long as the writer lives, which is how anybody can tell what a dead process
// left, without a clock. The file system must therefore carry flock between all
// who use it; local file systems and NFS do.
//
// All paths go through an os.Root: a link inside the folder can't lead a write
// or a removal outside.
type Folder struct {
	path string
	root *os.Root

	mu   sync.Mutex
	made map[string]bool // folders that are known to be there, durably
	temp uint64          // distinguishes this Folder's temporary files

	// hook, when not nil, is called before every step that changes the disk.
	// Tests use it to fail steps and to see their order.
	hook func(step, name string) error
}

const tmpDir = "tmp"

// OpenFolder opens the folder at path.
func OpenFolder(path string) (*Folder, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open folder: %w", err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	return &Folder{path: abs, root: root, made: make(map[string]bool)}, nil
}

// MakeFolder makes the folder at path, durably, and opens it. A folder that is
// there already is only opened.
func MakeFolder(path string) (*Folder, error) {
	var missing []string
	for p := filepath.Clean(path); ; p = filepath.Dir(p) {
		if _, err := os.Stat(p); err == nil || !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append(missing, p)
	}
	for _, p := range slices.Backward(missing) {
		if err := os.Mkdir(p, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make folder: %w", err)
		}
		parent, err := os.Open(filepath.Dir(p))
		if err != nil {
			return nil, fmt.Errorf("make folder: %w", err)
		}
		err = parent.Sync()
		parent.Close()
		if err != nil {
			return nil, fmt.Errorf("make folder: %w", err)
		}
	}
	return OpenFolder(path)
}

// Close closes the folder. Holds and locks that are still there stay.
func (f *Folder) Close() error { return f.root.Close() }

// Location is the folder's absolute path.
func (f *Folder) Location() string { return f.path }

func (f *Folder) step(step, name string) error {
	if f.hook == nil {
		return nil
	}
	return f.hook(step, name)
}

// Foreign names whatever is in the folder except what an interrupted
// initialisation or mkfs leaves.
func (f *Folder) Foreign(ctx context.Context) ([]string, error) {
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", f.path, err)
	}
	var names []string
	for _, e := range entries {
		switch e.Name() {
		case "lost+found", tmpDir, "locks", "keys":
		default:
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// openDir opens the folder dir, which it makes durably when it is not there.
// Several may make the same folder at the same time.
func (f *Folder) openDir(dir string) (*os.File, error) {
	f.mu.Lock()
	made := f.made[dir] || dir == "."
	f.mu.Unlock()
	if !made {
		if err := f.makeDir(dir); err != nil {
			return nil, err
		}
		f.mu.Lock()
		f.made[dir] = true
		f.mu.Unlock()
	}
	return f.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
}

func (f *Folder) makeDir(dir string) error {
	parent := path.Dir(dir)
	p, err := f.openDir(parent)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := f.step("mkdir", dir); err != nil {
		return err
	}
	if err := f.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return f.syncDir(p, parent)
}

func (f *Folder) syncDir(d *os.File, name string) error {
	if err := f.step("syncdir", name); err != nil {
		return err
	}
	return d.Sync()
}

// makeTemp makes a locked temporary file. Clean may find the file before it is
// locked and remove it; then another one is made.
func (f *Folder) makeTemp() (*os.File, string, error) {
	d, err := f.openDir(tmpDir)
	if err != nil {
		return nil, "", err
	}
	d.Close()
	for {
		f.mu.Lock()
		f.temp++
		name := fmt.Sprintf("%s/%d-%d", tmpDir, os.Getpid(), f.temp)
		f.mu.Unlock()
		if err := f.step("create", name); err != nil {
			return nil, "", err
		}
		file, err := f.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue // an earlier process of this number left it
		}
		if err != nil {
			return nil, "", err
		}
		var st unix.Stat_t
		if err := flock(file, unix.LOCK_EX); err != nil {
			file.Close()
			return nil, "", fmt.Errorf("lock %s: %w", name, err)
		}
		if err := unix.Fstat(int(file.Fd()), &st); err == nil && st.Nlink > 0 {
			return file, name, nil
		}
		file.Close()
	}
}

// flock repeats flock(2) when a signal interrupts it.
func flock(file *os.File, how int) error {
	for {
		if err := unix.Flock(int(file.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// Create begins an object as a file under tmp/.
func (f *Folder) Create(ctx context.Context, name string, mode Mode) (Writer, error) {
	if err := checkName("create", name); err != nil {
		return nil, err
	}
	file, temp, err := f.makeTemp()
	if err != nil {
		return nil, fmt.Errorf("create %s in %s: %w", name, f.path, err)
	}
	return &folderWriter{f: f, file: file, temp: temp, name: name, mode: mode}, nil
}

type folderWriter struct {
	f          *Folder
	file       *os.File // nil when done
	temp, name string
	mode       Mode
	size       int64 // written
	begun      int64 // of that the disk was told to write
}

// writeBehind is how much is written before the disk is told to begin: when the
// object is whole there is little left to wait for.
const writeBehind = 4 << 20

func (w *folderWriter) Write(p []byte) (int, error) {
	if err := w.f.step("write", w.name); err != nil {
		return 0, fmt.Errorf("write %s in %s: %w", w.name, w.f.path, err)
	}
	n, err := w.file.Write(p)
	if err != nil {
		return n, fmt.Errorf("write %s in %s: %w", w.name, w.f.path, err)
	}
	if w.size += int64(n); w.size-w.begun >= writeBehind {
		// Commit does not rely on it.
		_ = unix.SyncFileRange(int(w.file.Fd()), w.begun, w.size-w.begun, unix.SYNC_FILE_RANGE_WRITE)
		w.begun = w.size
	}
	return n, nil
}

func (w *folderWriter) Commit(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		err = w.commit()
	}
	w.Abort()
	if err != nil {
		return fmt.Errorf("commit %s in %s: %w", w.name, w.f.path, err)
	}
	return nil
}

func (w *folderWriter) commit() error {
	dir, base := path.Split(w.name)
	d, err := w.f.openDir(path.Clean(dir))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := w.f.step("sync", w.name); err != nil {
		return err
	}
	if err := w.file.Sync(); err != nil {
		return err
	}
	if err := w.f.rename(w.temp, d, base, w.name, w.mode); err != nil {
		return err
	}
	w.temp = ""
	return w.f.syncDir(d, path.Clean(dir))
}

// rename moves the file temp to the name base in the open folder d.
func (f *Folder) rename(temp string, d *os.File, base, name string, mode Mode) error {
	if err := f.step("rename", name); err != nil {
		return err
	}
	t, err := f.root.OpenFile(tmpDir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer t.Close()
	from, fromName, to := int(t.Fd()), path.Base(temp), int(d.Fd())
	if mode == Replace {
		return unix.Renameat(from, fromName, to, base)
	}
	err = unix.Renameat2(from, fromName, to, base, unix.RENAME_NOREPLACE)
	if err != unix.EINVAL && err != unix.ENOSYS && err != unix.ENOTSUP {
		return err
	}
	// NFS has no RENAME_NOREPLACE, but link(2) does not replace either.
	if err := unix.Linkat(from, fromName, to, base, 0); err != nil {
		return err
	}
	return unix.Unlinkat(from, fromName, 0)
}

func (w *folderWriter) Abort() {
	if w.file == nil {
		return
	}
	if w.temp != "" && w.f.step("unlink", w.temp) == nil {
		w.f.root.Remove(w.temp)
	}
	w.file.Close()
	w.file = nil
}

// ReadAt reads with pread(2) from the object's file.
func (f *Folder) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := checkName("read", name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := f.openRegular(name)
	if err != nil {
		return fmt.Errorf("read %s in %s: %w", name, f.path, err)
	}
	defer file.Close()
	_, err = file.ReadAt(p, off)
	if err == io.EOF {
		err = ErrShort
	}
	if err != nil {
		return fmt.Errorf("read %d bytes at %d of %s in %s: %w", len(p), off, name, f.path, err)
	}
	return nil
}

// openRegular opens an object's file. Opening a FIFO that somebody put in its
// place does not block.
func (f *Folder) openRegular(name string) (*os.File, error) {
	file, err := f.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		file.Close()
		if err == nil {
			err = errors.New("not a regular file")
		}
		return nil, err
	}
	return file, nil
}

// Size is the size of the object's file.
func (f *Folder) Size(ctx context.Context, name string) (int64, error) {
	if err := checkName("stat", name); err != nil {
		return 0, err
	}
	st, err := f.root.Stat(name)
	if err != nil {
		return 0, fmt.Errorf("stat %s in %s: %w", name, f.path, err)
	}
	return st.Size(), nil
}

// List walks the folder. Files whose names no object can have are left out.
func (f *Folder) List(ctx context.Context, dir string) ([]Info, error) {
	if err := checkName("list", dir); err != nil {
		return nil, err
	}
	var infos []Info
	err := fs.WalkDir(f.root.FS(), dir, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // dir itself, or a file that went while we looked
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if e.IsDir() || !ValidName(name) {
			return nil
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		infos = append(infos, Info{Name: name, Size: st.Size()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s in %s: %w", dir, f.path, err)
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

// Delete unlinks the files and syncs their folders.
func (f *Folder) Delete(ctx context.Context, names ...string) error {
	dirs := make(map[string]bool)
	for _, name := range names {
		if err := checkName("delete", name); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		err := f.step("unlink", name)
		if err == nil {
			err = f.root.Remove(name)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("delete %s in %s: %w", name, f.path, err)
		}
		dirs[path.Dir(name)] = true
	}
	for dir := range dirs {
		d, err := f.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err == nil {
			err = f.syncDir(d, dir)
			d.Close()
		}
		if err != nil {
			return fmt.Errorf("sync %s in %s: %w", dir, f.path, err)
		}
	}
	return nil
}
