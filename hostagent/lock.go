package hostagent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
)

// DefaultRunDir is where the locks are kept, unless RunDirEnv names another
// folder. It has to be the same for all programs of the machine.
const (
	DefaultRunDir = "/run/swapback"
	RunDirEnv     = "SWAPBACK_RUN_DIR"
)

// Locks are what one worker of this machine (a run of a job, a recovery, a
// restore) keeps the others from. The kernel frees them when the process ends,
// however it does. A nil *Locks locks nothing. It is safe for concurrent use.
type Locks struct {
	dir, owner string

	mu   sync.Mutex
	held map[string]*os.File
}

// NewLocks makes locks in a run directory. owner says who has them, for those
// who are kept out: "job nightly".
func NewLocks(runDir, owner string) *Locks {
	return &Locks{dir: filepath.Join(runDir, "locks"), owner: owner, held: map[string]*os.File{}}
}

// Job locks a job.
func (l *Locks) Job(name string) error {
	_, err := l.take("job-"+name, "job "+name)
	return err
}

// Volume locks a volume. What these locks hold already is not locked again, and
// then the returned function, which frees it, does nothing.
func (l *Locks) Volume(v api.Volume) (release func(), err error) {
	return l.take("volume-"+v.UUID, "volume "+full(v))
}

// volumes locks all of some volumes, or none.
func (l *Locks) volumes(list []api.Volume) (release func(), err error) {
	var undo []func()
	release = func() {
		for _, f := range undo {
			f()
		}
	}
	for _, v := range list {
		f, err := l.Volume(v)
		if err != nil {
			release()
			return nil, err
		}
		undo = append(undo, f)
	}
	return release, nil
}

// Release frees all.
func (l *Locks) Release() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, f := range l.held {
		f.Close()
		delete(l.held, name)
	}
}

// take locks one thing. Whoever has it is named.
func (l *Locks) take(name, what string) (release func(), err error) {
	if l == nil {
		return func() {}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[name] != nil {
		return func() {}, nil
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("locks: %w", err)
	}
	path := filepath.Join(l.dir, name+".lock")
	// Who can open the file, for reading even, can hold the lock.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return nil, &api.Error{
			Code:    api.CodeBusy,
			Message: fmt.Sprintf("%s is being worked on by %s", what, lockOwner(f)),
			Remedy:  "try again when it has ended (swapback-agent status)",
		}
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%s (process %d)\n", l.owner, os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	l.held[name] = f
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.held[name] == f {
			f.Close()
			delete(l.held, name)
		}
	}, nil
}

// lockOwner reads who has a lock. One who has just taken it writes that a moment
// later, which is waited for.
func lockOwner(f *os.File) string {
	owner := make([]byte, 256)
	for range 50 {
		n, _ := f.ReadAt(owner, 0) // what is there will do
		if text := strings.TrimSpace(string(owner[:n])); text != "" {
			return text
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "another process"
}
