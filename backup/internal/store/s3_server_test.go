package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/swapback/swapback/backup/internal/store"
	"github.com/swapback/swapback/backup/internal/store/s3test"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

func openS3(t testing.TB, location string, o store.S3Options) *store.S3 {
	t.Helper()
	o.Creds = s3test.Creds()
	s, err := store.OpenS3(location, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestS3(t *testing.T) {
	server := s3test.Start(t)
	n := 0
	storetest.Run(t, func(t *testing.T) (store.Store, func() store.Store) {
		n++
		location := server.Location("", fmt.Sprintf("test/%d", n))
		return openS3(t, location, store.S3Options{}), func() store.Store { return openS3(t, location, store.S3Options{}) }
	})
}

// The same over a network in which every third request comes to harm.
func TestS3OverABadNetwork(t *testing.T) {
	server := s3test.Start(t)
	faults := []s3test.Fault{s3test.Busy, s3test.Cut, s3test.LostReply, s3test.HalfReply, s3test.Slow}
	proxy := s3test.NewProxy(t, server, func(n int, _ *http.Request) s3test.Fault {
		if n%3 != 0 {
			return s3test.None
		}
		return faults[n/3%len(faults)]
	})
	n := 0
	storetest.Run(t, func(t *testing.T) (store.Store, func() store.Store) {
		n++
		location := server.Location(proxy.Addr, fmt.Sprintf("test/%d", n))
		return openS3(t, location, store.S3Options{}), func() store.Store { return openS3(t, location, store.S3Options{}) }
	})
	if proxy.Faults() < 50 {
		t.Errorf("only %d requests came to harm", proxy.Faults())
	}
}

// A large object goes in parts, and comes back.
func TestS3LargeObject(t *testing.T) {
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server, func(n int, _ *http.Request) s3test.Fault {
		if n%5 == 0 {
			return s3test.HalfReply
		}
		return s3test.None
	})
	s := openS3(t, server.Location(proxy.Addr, "x"), store.S3Options{})
	body := make([]byte, 33<<20)
	rand.NewChaCha8([32]byte{1}).Read(body)
	storetest.Put(t, s, "packs/1", store.Exclusive, body)
	if n := proxy.Count("PUT"); n < 5 {
		t.Errorf("it took %d PUTs: not in parts", n)
	}
	got := make([]byte, len(body))
	if err := s.ReadAt(t.Context(), "packs/1", got, 0); err != nil || !bytes.Equal(got, body) {
		t.Errorf("read: %v", err)
	}
}

// A holder that has died holds no more when its time is over; one that can't be
// heard of knows it before anybody else does; and one that lives is held longer than
// the time.
func TestS3HoldsEnd(t *testing.T) {
	const hold = 4 * time.Second // the server's clock has whole seconds
	server := s3test.Start(t)
	deaf := make(chan struct{})
	proxy := s3test.NewProxy(t, server, func(int, *http.Request) s3test.Fault {
		select {
		case <-deaf:
			return s3test.Cut
		default:
			return s3test.None
		}
	})
	o := store.S3Options{HoldTime: hold, Attempts: 1}
	look := openS3(t, server.Location("", "x"), o)
	living, err := openS3(t, server.Location("", "x"), o).Hold(t.Context(), "leases/living", nil)
	if err != nil {
		t.Fatal(err)
	}
	cutOff, err := openS3(t, server.Location(proxy.Addr, "x"), o).Hold(t.Context(), "leases/cut-off", nil)
	if err != nil {
		t.Fatal(err)
	}
	close(deaf)
	held := func(name string) bool {
		t.Helper()
		held, err := look.Held(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return held
	}
	knew := false
	for held("leases/cut-off") {
		knew = cutOff.Err() != nil
		time.Sleep(hold / 20)
	}
	if !knew {
		t.Error("the holder did not know before others did that its time was over")
	}
	if !held("leases/living") || living.Err() != nil {
		t.Errorf("one that lives is held no more: %v", living.Err())
	}
	if err := living.Release(); err != nil {
		t.Error(err)
	}
	_ = cutOff.Release() // can't be heard

	// A lock of one that has died does not block for longer.
	dead, err := openS3(t, server.Location("", "x"), o).Hold(t.Context(), "locks/gc/dead", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := look.Lock(ctx, "locks/gc"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("lock of another: %v", err)
	}
	if err := dead.Release(); err != nil {
		t.Fatal(err)
	}
	storetest.Put(t, look, "locks/gc/left", store.Exclusive, nil)
	lock, err := look.Lock(t.Context(), "locks/gc")
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
}

// The lock of somebody whom nobody hears any more goes to the next by itself, and he
// knows it before that.
func TestS3LostLockDoesNotBlock(t *testing.T) {
	const hold = 4 * time.Second // the server's clock has whole seconds
	server := s3test.Start(t)
	var deaf atomic.Bool
	proxy := s3test.NewProxy(t, server, func(int, *http.Request) s3test.Fault {
		if deaf.Load() {
			return s3test.Cut
		}
		return s3test.None
	})
	o := store.S3Options{HoldTime: hold, Attempts: 1}
	lost, err := openS3(t, server.Location(proxy.Addr, "x"), o).Lock(t.Context(), "locks/gc")
	if err != nil {
		t.Fatal(err)
	}
	deaf.Store(true)
	next, err := openS3(t, server.Location("", "x"), o).Lock(t.Context(), "locks/gc")
	if err != nil {
		t.Fatal(err)
	}
	if lost.Err() == nil {
		t.Error("two have the lock, and both believe it")
	}
	if err := next.Err(); err != nil {
		t.Errorf("the new holder: %v", err)
	}
	if err := next.Release(); err != nil {
		t.Error(err)
	}
	_ = lost.Release() // can't be heard
}

func TestS3Errors(t *testing.T) {
	server := s3test.Start(t)
	s := openS3(t, server.Location("", "x"), store.S3Options{Attempts: 1})
	storetest.Put(t, s, "a", store.Exclusive, []byte("x"))
	if foreign, err := s.Foreign(t.Context()); err != nil || len(foreign) != 1 || foreign[0] != "a" {
		t.Errorf("foreign: %v, %v", foreign, err)
	}
	if foreign, err := openS3(t, server.Location("", "y"), store.S3Options{}).Foreign(t.Context()); err != nil || len(foreign) != 0 {
		t.Errorf("foreign of another prefix: %v, %v", foreign, err)
	}
	none, err := store.OpenS3("s3://nowhere/x?region=us-east-1&endpoint=http://"+server.Addr, store.S3Options{Creds: s3test.Creds(), Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.List(t.Context(), "packs"); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("no bucket: %v", err)
	}
}

// A lock that is called off while the server makes its object leaves nothing that
// others would wait for.
func TestS3CalledOff(t *testing.T) {
	server := s3test.Start(t)
	proxy := s3test.NewProxy(t, server, func(_ int, r *http.Request) s3test.Fault {
		if r.Method == http.MethodPut {
			return s3test.Slow
		}
		return s3test.None
	})
	s := openS3(t, server.Location(proxy.Addr, "x"), store.S3Options{})
	look := openS3(t, server.Location(server.Addr, "x"), store.S3Options{})
	there := func() int {
		infos, err := look.List(t.Context(), "locks")
		if err != nil {
			t.Error(err)
		}
		return len(infos)
	}
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		var looking sync.WaitGroup
		looking.Go(func() {
			for ctx.Err() == nil && there() == 0 {
			}
			cancel()
		})
		lock, err := s.Lock(ctx, "locks/x")
		cancel()
		looking.Wait()
		if err == nil { // the answer was quicker
			if err := lock.Release(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if n := there(); n != 0 {
			t.Errorf("%d objects are left of a lock that was called off: %v", n, err)
		}
		return
	}
	t.Error("no lock was called off in time")
}
