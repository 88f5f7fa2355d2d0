package dmswap

import "sync"

// poolLock guards a pool. Who changes it holds Lock, through the commit of the
// change; while the commit waits for the disks readers are let in, and see what
// was committed before. So a disk that hangs keeps nobody from looking.
type poolLock struct {
	changes sync.Mutex // one change at a time; taken first
	state   sync.Mutex // guards the fields, held for moments only
}

// Lock is for changes. It may wait for another change's commit.
func (l *poolLock) Lock() {
	l.changes.Lock()
	l.state.Lock()
}

func (l *poolLock) Unlock() {
	l.state.Unlock()
	l.changes.Unlock()
}

// RLock is for looking, and does not wait for disks.
func (l *poolLock) RLock()   { l.state.Lock() }
func (l *poolLock) RUnlock() { l.state.Unlock() }

// LockChanges keeps others from changing the pool and lets them look at it. Its
// holder may only look, and may take his time.
func (l *poolLock) LockChanges()   { l.changes.Lock() }
func (l *poolLock) UnlockChanges() { l.changes.Unlock() }

// Unguarded runs what waits for disks on behalf of the holder of Lock. It must not
// touch what the lock guards.
func (l *poolLock) Unguarded(io func()) {
	l.state.Unlock()
	defer l.state.Lock()
	io()
}
