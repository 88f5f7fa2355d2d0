package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Hold creates a file that is locked before it gets its name, so that nobody
// sees it unlocked while the holder lives. On a full disk the file stays empty:
// the lock is what counts, and whoever wants to restore from a full disk or to
// delete backups on it must be able to hold.
func (f *Folder) Hold(ctx context.Context, name string, body []byte) (Hold, error) {
	h, err := f.hold(ctx, name, body)
	if err != nil {
		return nil, fmt.Errorf("hold %s in %s: %w", name, f.path, err)
	}
	return h, nil
}

func (f *Folder) hold(ctx context.Context, name string, body []byte) (*folderHold, error) {
	if err := checkName("hold", name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	file, temp, err := f.makeTemp()
	if err != nil {
		return nil, err
	}
	w := &folderWriter{f: f, file: file, temp: temp, name: name}
	d, err := f.openDir(path.Dir(name))
	if err != nil {
		w.Abort()
		return nil, err
	}
	defer d.Close()
	if err = f.step("write", name); err == nil {
		_, err = file.Write(body)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = file.Truncate(0)
	}
	if err == nil {
		err = f.rename(temp, d, path.Base(name), name, Exclusive)
	}
	if err != nil {
		w.Abort()
		return nil, err
	}
	return &folderHold{f: f, file: file, name: name}, nil
}

type folderHold struct {
	f    *Folder
	name string
	mu   sync.Mutex
	file *os.File // nil when released
}

func (h *folderHold) Release() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file == nil {
		return nil
	}
	err := h.f.step("unlink", h.name)
	if err == nil {
		err = h.f.root.Remove(h.name)
	}
	h.file.Close()
	h.file = nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release %s in %s: %w", h.name, h.f.path, err)
	}
	return nil
}

// Err is nil: nobody sees the lock gone while the process lives.
func (h *folderHold) Err() error { return nil }

// Held tries to lock the file, shared with others who look at the same time.
func (f *Folder) Held(ctx context.Context, name string) (bool, error) {
	if err := checkName("look at", name); err != nil {
		return false, err
	}
	file, err := f.openRegular(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s in %s: %w", name, f.path, err)
	}
	defer file.Close()
	switch err := flock(file, unix.LOCK_SH|unix.LOCK_NB); err {
	case nil:
		return false, nil
	case unix.EWOULDBLOCK:
		return true, nil
	default:
		return false, fmt.Errorf("look at %s in %s: %w", name, f.path, err)
	}
}

// lockPoll is how often a waiting Lock looks again.
const lockPoll = 50 * time.Millisecond

// Lock locks a file that stays when the lock goes.
func (f *Folder) Lock(ctx context.Context, name string) (Hold, error) {
	if err := checkName("lock", name); err != nil {
		return nil, err
	}
	d, err := f.openDir(path.Dir(name))
	if err != nil {
		return nil, fmt.Errorf("lock %s in %s: %w", name, f.path, err)
	}
	d.Close()
	file, err := f.root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s in %s: %w", name, f.path, err)
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := flock(file, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return folderLock{file}, nil
		}
		if err == unix.EWOULDBLOCK {
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		file.Close()
		return nil, fmt.Errorf("lock %s in %s: %w", name, f.path, err)
	}
}

type folderLock struct{ file *os.File }

func (l folderLock) Release() error {
	if err := l.file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}

// Err is nil, as a folderHold's.
func (l folderLock) Err() error { return nil }

// Clean removes temporary files that nobody has locked.
func (f *Folder) Clean(ctx context.Context) (bytes int64, err error) {
	entries, err := fs.ReadDir(f.root.FS(), tmpDir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("clean %s: %w", f.path, err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return bytes, err
		}
		n, err := f.cleanTemp(tmpDir + "/" + e.Name())
		if err != nil {
			return bytes, fmt.Errorf("clean %s/%s: %w", f.path, tmpDir, err)
		}
		bytes += n
	}
	return bytes, nil
}

func (f *Folder) cleanTemp(name string) (int64, error) {
	file, err := f.openRegular(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer file.Close()
	if err := flock(file, unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	st, err := file.Stat()
	if err != nil {
		return 0, err
	}
	// A holder may have moved the file to its name between open and lock; then
	// this name is gone, or is another writer's new file.
	now, err := f.root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(st, now) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if err := f.step("unlink", name); err != nil {
		return 0, err
	}
	if err := f.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return st.Size(), nil
}
