//go:build vm

package storm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/swapback/swapback/api"
)

// job is what a worker does, and what it knows must be true.
type job interface {
	// round does one operation of the API and looks at what it did. It may find
	// the daemon away (errAway) or dying under it (errCut); every other error is
	// a failure.
	round(w *worker) error
	// settle looks, on a new daemon, at what became of the operation that was cut
	// off, if there was one, and then whether everything is as it must be.
	settle(w *worker, cut moment) error
}

var (
	errAway = errors.New("no daemon to ask")
	errCut  = errors.New("the daemon died under the operation")
)

// underWay is an operation of the API that was begun.
type underWay struct {
	moment moment
	began  time.Time
}

// worker does the rounds of a job, one after another.
type worker struct {
	storm *storm
	job   job
	rand  *rand.Rand

	now atomic.Pointer[underWay]

	mu  sync.Mutex // held during a round, and by who looks at what follows
	cut *underWay  // the operation that was cut off, until it is settled
	bad bool       // it has failed the test
}

// loop is the worker's goroutine.
func (w *worker) loop() {
	for {
		select {
		case <-w.storm.quit:
			return
		case <-time.After(5 * time.Millisecond): // so that others get the lock
		}
		w.mu.Lock()
		if w.cut == nil && !w.bad {
			w.fail(w.job.round(w))
		}
		w.mu.Unlock()
	}
}

// fail fails the test, unless an error only says that the daemon is gone.
func (w *worker) fail(err error) {
	if err != nil && !errors.Is(err, errAway) && !errors.Is(err, errCut) {
		w.bad = true
		w.storm.t.Errorf("%T: %v", w.job, err)
	}
}

// do has an operation carried out. The others know meanwhile that it is.
func (w *worker) do(m moment, op func(context.Context) error) error {
	u := &underWay{m, time.Now()}
	w.now.Store(u)
	defer w.now.Store(nil)
	err := op(w.storm.t.Context())
	// A program that starts at this instant may have inherited a descriptor of
	// the device for the time until its exec, as those of this one do. And a
	// snapshot closes a while after the connection that held it.
	for try := 0; (code(err) == api.CodeInUse || code(err) == api.CodeBusy) && try < 500; try++ {
		time.Sleep(10 * time.Millisecond)
		err = op(w.storm.t.Context())
	}
	switch {
	case err == nil:
		w.storm.typical.add(m, time.Since(u.began))
		return nil
	case unreached(err):
		return errAway
	case code(err) == api.CodeUnavailable:
		w.cut = u
		return errCut
	case code(err) != "":
		return fmt.Errorf("%s: refused: %w", m, err)
	}
	w.cut = u
	return errCut
}

// unreached says that no daemon has heard of the operation. One that went away
// before it answered has the same code, and may have done it.
func unreached(err error) bool {
	return code(err) == api.CodeUnavailable && strings.HasPrefix(err.Error(), "no swapbackd at")
}

// code is that of an answer of the API, "" when it is none.
func code(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// volume describes a volume, and waits for a daemon that can.
func (w *worker) volume(name string) (api.Volume, error) {
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		v, err := w.storm.d.Client.Volume(w.storm.t.Context(), name)
		if err == nil || code(err) != "" && code(err) != api.CodeUnavailable {
			return v, err
		}
		if time.Now().After(deadline) {
			return v, fmt.Errorf("no daemon for three minutes: %w", err)
		}
	}
}

// wished is the moment that the killer waits for.
func (w *worker) wished() moment { return w.storm.wish.Load().(moment) }
