package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
)

// How things are held in a bucket.
//
// A held object says so in its metadata, and its holder writes it anew ten times
// in HoldTime. It counts as held until HoldTime has passed since the last time, by
// the server's clock alone: the time that it gives to the object, and the time
// that it says it is. No clock of a client takes part, nor of two servers.
//
// A holder that could not write for half of HoldTime, by its own clock that only
// counts, must take it that it is held no more: [Hold.Err] says so, long before
// anybody else can find it dead. So a backup that lost its lease writes no
// manifest, and what was found dead stays dead.
//
// A lock is a held object of its own for each who wants it, in a folder of the
// lock's name. Whoever sees no other live one after having written his own has the
// lock. Two who come at once may both see each other; both go back, wait a random
// time and try again. That needs nothing of the server but that what is written is
// listed.

// HoldTime is how long what is held in a bucket outlives a holder that has gone.
const HoldTime = 2 * time.Minute

const metaHeld = "Held"

// Hold writes the object and keeps writing it.
func (s *S3) Hold(ctx context.Context, name string, body []byte) (Hold, error) {
	h, err := s.hold(ctx, name, body)
	if err != nil {
		return nil, fmt.Errorf("hold %s in %s: %w", name, s.location, err)
	}
	return h, nil
}

func (s *S3) hold(ctx context.Context, name string, body []byte) (*s3Hold, error) {
	if err := checkName("hold", name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h := &s3Hold{s: s, name: name, body: body, quit: make(chan struct{}), done: make(chan struct{})}
	h.written = time.Now() // before: the server's time of it is later
	if err := s.put(ctx, name, Exclusive, body, map[string]string{metaHeld: "1"}); err != nil {
		return nil, err
	}
	go h.keep()
	return h, nil
}

type s3Hold struct {
	s    *S3
	name string
	body []byte

	quit, done chan struct{}
	once       sync.Once
	released   error

	mu      sync.Mutex
	written time.Time // not later than the server's time of the object
	lost    error
}

// keep writes the object again and again. One that has gone is not made anew:
// somebody found it dead, and acts on that.
func (h *s3Hold) keep() {
	defer close(h.done)
	tick := time.NewTicker(h.s.o.HoldTime / 10)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-h.quit:
			return
		}
		if err := h.Err(); err != nil { // what somebody may have found dead stays dead
			h.mu.Lock()
			h.lost = err
			h.mu.Unlock()
			return
		}
		// Five that hang make a holder lost, and no fewer.
		ctx, cancel := context.WithTimeout(context.Background(), h.s.o.HoldTime/12)
		began := time.Now()
		_, err := h.s.stat(ctx, h.name)
		if err == nil {
			err = h.s.put(ctx, h.name, Replace, h.body, map[string]string{metaHeld: "1"})
		}
		cancel()
		h.mu.Lock()
		switch {
		case err == nil:
			h.written = began
		case errors.Is(err, ErrNotExist):
			h.lost = fmt.Errorf("%s in %s has gone: somebody took its holder for dead", h.name, h.s.location)
		}
		lost := h.lost != nil
		h.mu.Unlock()
		if lost {
			return
		}
	}
}

// Err tells whether the object can still be relied upon.
func (h *s3Hold) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if age := time.Since(h.written); h.lost == nil && age > h.s.o.HoldTime/2 {
		return fmt.Errorf("%s in %s could not be renewed for %s", h.name, h.s.location, age.Round(time.Second))
	}
	return h.lost
}

// Release removes the object.
func (h *s3Hold) Release() error {
	h.once.Do(func() {
		close(h.quit)
		<-h.done
		ctx, cancel := context.WithTimeout(context.Background(), h.s.o.HoldTime/4)
		defer cancel()
		h.released = h.s.Delete(ctx, h.name)
	})
	return h.released
}

// Held looks at the server's time of the object.
func (s *S3) Held(ctx context.Context, name string) (bool, error) {
	if err := checkName("look at", name); err != nil {
		return false, err
	}
	o, err := s.stat(ctx, name)
	if errors.Is(err, ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now, ok := s.clock.now()
	if !ok {
		return true, fmt.Errorf("look at %s in %s: the server does not say what time it is", name, s.location)
	}
	return o.UserMetadata[metaHeld] != "" && now.Sub(o.LastModified) < s.o.HoldTime, nil
}

// Lock waits until nobody else is in the lock's folder.
func (s *S3) Lock(ctx context.Context, name string) (Hold, error) {
	if err := checkName("lock", name); err != nil {
		return nil, err
	}
	wait := 50 * time.Millisecond
	for {
		h, err := s.hold(ctx, name+"/"+uuid.NewString(), nil)
		if err != nil {
			return nil, fmt.Errorf("lock %s in %s: %w", name, s.location, err)
		}
		alone, err := s.alone(ctx, name, h.name)
		if err == nil && alone {
			return h, nil
		}
		if rerr := h.Release(); err == nil {
			err = rerr
		}
		if err == nil {
			select {
			case <-time.After(wait/2 + rand.N(wait)):
				wait = min(2*wait, 2*time.Second)
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		return nil, fmt.Errorf("lock %s in %s: %w", name, s.location, err)
	}
}

// alone tells whether mine is the only live object in the folder. It removes the
// dead ones.
func (s *S3) alone(ctx context.Context, folder, mine string) (bool, error) {
	infos, err := s.List(ctx, folder)
	if err != nil {
		return false, err
	}
	for _, i := range infos {
		if i.Name == mine {
			continue
		}
		held, err := s.Held(ctx, i.Name)
		if held || err != nil {
			return false, err
		}
		if err := s.Delete(ctx, i.Name); err != nil {
			return false, err
		}
	}
	return true, nil
}
