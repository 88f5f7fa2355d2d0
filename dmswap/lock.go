package dmswap

import "sync"

// poolLock guards a pool. Who changes it holds Lock, through the commit of the
// change; while the commit waits for the disks readers are let in, and see what
// was committed before. So a disk that hangs keeps nobody from looking.
type poolLock struct {
	changes chan struct{} // one change at a time; taken first
	state   sync.Mutex    // guards the fields, held for moments only

	mu    sync.Mutex
	stuck error         // why the change under way waits, or nil
	told  chan struct{} // closed when stuck is set
}

func newPoolLock() *poolLock {
	return &poolLock{changes: make(chan struct{}, 1), told: make(chan struct{})}
}

// Lock is for changes. It may wait for another change's commit.
func (l *poolLock) Lock() {
	l.LockChanges()
	l.state.Lock()
}

func (l *poolLock) Unlock() {
	l.state.Unlock()
	l.UnlockChanges()
}

// TryLock is Lock for what can be refused: a commit that waits for a disk that
// hangs may take any time.
func (l *poolLock) TryLock() error {
	if err := l.TryLockChanges(); err != nil {
		return err
	}
	l.state.Lock()
	return nil
}

// RLock is for looking, and does not wait for disks.
func (l *poolLock) RLock()   { l.state.Lock() }
func (l *poolLock) RUnlock() { l.state.Unlock() }

// LockChanges keeps others from changing the pool and lets them look at it. Its
// holder may only look, and may take his time.
func (l *poolLock) LockChanges()   { l.changes <- struct{}{} }
func (l *poolLock) UnlockChanges() { <-l.changes }

// TryLockChanges is LockChanges for what can be refused.
func (l *poolLock) TryLockChanges() error {
	l.mu.Lock()
	stuck, told := l.stuck, l.told
	l.mu.Unlock()
	if stuck != nil {
		return stuck
	}
	select {
	case l.changes <- struct{}{}:
		return nil
	case <-told:
		return l.TryLockChanges()
	}
}

// Stuck says that the change under way waits for a disk that hangs, and with nil
// that it waits no more.
func (l *poolLock) Stuck(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stuck = why; why != nil {
		close(l.told)
		l.told = make(chan struct{})
	}
}

// Unguarded runs what waits for disks on behalf of the holder of Lock. It must not
// touch what the lock guards.
func (l *poolLock) Unguarded(io func()) {
	l.state.Unlock()
	defer l.state.Lock()
	io()
}
