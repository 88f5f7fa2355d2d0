// Package storetest holds the suite that every store.Store passes, and a store
// in memory that can crash and fail at every operation.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/swapback/swapback/backup/internal/store"
)

// ErrCrash is what every operation returns after a crash.
var ErrCrash = errors.New("store crashed")

// Op is an operation that a hook sees.
type Op struct {
	N    int    // counted from 1, changing operations only
	Kind string // create, write, commit, delete, hold, release, read, list
	Name string
}

func (o Op) String() string { return fmt.Sprintf("%d %s %s", o.N, o.Kind, o.Name) }

// changes tells whether the operation can change the store.
func (o Op) changes() bool { return o.Kind != "read" && o.Kind != "list" }

// Mem is a store in memory. What was committed survives Crash; what was not, and
// all holds and locks, do not. Several Mems may share the objects of one, as
// processes share a folder: see Open.
type Mem struct {
	disk *disk
	// Before, when set, runs before an operation, which fails with its error.
	Before func(Op) error
	// After, when set, runs after an operation that succeeded; its error is
	// what the caller gets although the operation took effect.
	After func(Op) error

	mu      sync.Mutex
	ops     int
	crashed bool
	holds   map[string]bool
}

type disk struct {
	mu      sync.Mutex
	objects map[string][]byte
	holders map[string]*Mem
	locks   map[string]chan struct{}
	temps   map[*memWriter]*Mem
}

// NewMem returns an empty store.
func NewMem() *Mem {
	return (&Mem{disk: &disk{
		objects: make(map[string][]byte), holders: make(map[string]*Mem),
		locks: make(map[string]chan struct{}), temps: make(map[*memWriter]*Mem),
	}}).Open()
}

// Open returns another view of the same objects with no hooks, as another
// process would have it.
func (m *Mem) Open() *Mem { return &Mem{disk: m.disk, holds: make(map[string]bool)} }

// Crash ends this view: its holds are given up and all that follows fails.
func (m *Mem) Crash() {
	m.mu.Lock()
	m.crashed = true
	m.mu.Unlock()
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	for name, holder := range m.disk.holders {
		if holder == m {
			delete(m.disk.holders, name)
		}
	}
}

// Ops is how many changing operations there were.
func (m *Mem) Ops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}

// Clone returns a store with copies of the objects and nothing held.
func (m *Mem) Clone() *Mem {
	c := NewMem()
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	for name, b := range m.disk.objects {
		c.disk.objects[name] = bytes.Clone(b)
	}
	return c
}

// Object returns the bytes of an object, nil when it is not there.
func (m *Mem) Object(name string) []byte {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	return bytes.Clone(m.disk.objects[name])
}

// SetObject puts bytes in an object's place; nil removes it.
func (m *Mem) SetObject(name string, b []byte) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	if b == nil {
		delete(m.disk.objects, name)
		return
	}
	m.disk.objects[name] = b
}

// Names returns the names of all objects below dir, or of all.
func (m *Mem) Names(dir string) (names []string) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	for name := range m.disk.objects {
		if dir == "" || strings.HasPrefix(name, dir+"/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// do runs an operation between the hooks.
func (m *Mem) do(ctx context.Context, kind, name string, f func() error) error {
	m.mu.Lock()
	op := Op{N: m.ops, Kind: kind, Name: name}
	if op.changes() {
		m.ops++
		op.N = m.ops
	}
	crashed := m.crashed
	m.mu.Unlock()
	if crashed {
		return ErrCrash
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.Before != nil {
		if err := m.Before(op); err != nil {
			return err
		}
	}
	m.disk.mu.Lock()
	err := f()
	m.disk.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s %s: %w", kind, name, err)
	}
	if m.After != nil {
		return m.After(op)
	}
	return nil
}

func (m *Mem) Location() string { return "memory" }
func (m *Mem) Close() error     { return nil }

func (m *Mem) Foreign(ctx context.Context) ([]string, error) { return m.Names(""), nil }

func (m *Mem) Create(ctx context.Context, name string, mode store.Mode) (store.Writer, error) {
	w := &memWriter{m: m, name: name, mode: mode}
	return w, m.do(ctx, "create", name, func() error {
		if !store.ValidName(name) {
			return errors.New("not a name for an object")
		}
		m.disk.temps[w] = m
		return nil
	})
}

type memWriter struct {
	m    *Mem
	name string
	mode store.Mode
	buf  []byte
	done bool
}

func (w *memWriter) Write(p []byte) (int, error) {
	err := w.m.do(context.Background(), "write", w.name, func() error {
		w.buf = append(w.buf, p...)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *memWriter) Commit(ctx context.Context) error {
	defer w.Abort()
	return w.m.do(ctx, "commit", w.name, func() error {
		if _, there := w.m.disk.objects[w.name]; there && w.mode == store.Exclusive {
			return store.ErrExist
		}
		w.m.disk.objects[w.name] = w.buf
		return nil
	})
}

func (w *memWriter) Abort() {
	w.m.mu.Lock()
	crashed := w.m.crashed
	w.m.mu.Unlock()
	if w.done || crashed {
		return
	}
	w.done = true
	w.m.disk.mu.Lock()
	delete(w.m.disk.temps, w)
	w.m.disk.mu.Unlock()
}

func (m *Mem) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	return m.do(ctx, "read", name, func() error {
		b, there := m.disk.objects[name]
		if !there {
			return store.ErrNotExist
		}
		if off+int64(len(p)) > int64(len(b)) {
			return store.ErrShort
		}
		copy(p, b[off:])
		return nil
	})
}

func (m *Mem) Size(ctx context.Context, name string) (size int64, err error) {
	err = m.do(ctx, "read", name, func() error {
		b, there := m.disk.objects[name]
		if !there {
			return store.ErrNotExist
		}
		size = int64(len(b))
		return nil
	})
	return size, err
}

func (m *Mem) List(ctx context.Context, dir string) (infos []store.Info, err error) {
	err = m.do(ctx, "list", dir, func() error {
		for name, b := range m.disk.objects {
			if strings.HasPrefix(name, dir+"/") {
				infos = append(infos, store.Info{Name: name, Size: int64(len(b))})
			}
		}
		return nil
	})
	slices.SortFunc(infos, func(a, b store.Info) int { return strings.Compare(a.Name, b.Name) })
	return infos, err
}

func (m *Mem) Delete(ctx context.Context, names ...string) error {
	for _, name := range names {
		err := m.do(ctx, "delete", name, func() error {
			delete(m.disk.objects, name)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *Mem) Hold(ctx context.Context, name string, body []byte) (store.Hold, error) {
	err := m.do(ctx, "hold", name, func() error {
		if _, there := m.disk.objects[name]; there {
			return store.ErrExist
		}
		m.disk.objects[name] = bytes.Clone(body)
		m.disk.holders[name] = m
		return nil
	})
	return &memHold{m: m, name: name}, err
}

type memHold struct {
	m    *Mem
	name string
	done bool
}

func (h *memHold) Err() error { return nil }

func (h *memHold) Release() error {
	if h.done {
		return nil
	}
	h.done = true
	return h.m.do(context.Background(), "release", h.name, func() error {
		delete(h.m.disk.objects, h.name)
		delete(h.m.disk.holders, h.name)
		return nil
	})
}

func (m *Mem) Held(ctx context.Context, name string) (held bool, err error) {
	err = m.do(ctx, "read", name, func() error {
		held = m.disk.holders[name] != nil
		return nil
	})
	return held, err
}

func (m *Mem) Lock(ctx context.Context, name string) (store.Hold, error) {
	m.disk.mu.Lock()
	c := m.disk.locks[name]
	if c == nil {
		c = make(chan struct{}, 1)
		m.disk.locks[name] = c
	}
	m.disk.mu.Unlock()
	select {
	case c <- struct{}{}:
		return &memLock{c: c}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type memLock struct {
	c    chan struct{}
	once sync.Once
}

func (l *memLock) Release() error {
	l.once.Do(func() { <-l.c })
	return nil
}

func (l *memLock) Err() error { return nil }

// Clean forgets the writers of views that crashed.
func (m *Mem) Clean(ctx context.Context) (freed int64, err error) {
	err = m.do(ctx, "clean", "", func() error {
		for w, owner := range m.disk.temps {
			owner.mu.Lock()
			if owner.crashed {
				freed += int64(len(w.buf))
				delete(m.disk.temps, w)
			}
			owner.mu.Unlock()
		}
		return nil
	})
	return freed, err
}

// Temps is how many writers have neither committed nor aborted.
func (m *Mem) Temps() int {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	return len(m.disk.temps)
}
