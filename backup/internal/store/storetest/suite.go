package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/swapback/swapback/backup/internal/store"
)

// Run runs the suite. open returns a view of a fresh empty store, and a function
// that opens further views of the same store, as other processes would.
func Run(t *testing.T, open func(t *testing.T) (store.Store, func() store.Store)) {
	tests := []struct {
		name string
		f    func(t *testing.T, s store.Store, another func() store.Store)
	}{
		{"ObjectAppearsAtCommit", testCommit},
		{"AbortLeavesNothing", testAbort},
		{"ExclusiveRefusesASecond", testExclusive},
		{"ReplaceExchangesWhole", testReplace},
		{"ReadBounds", testReadBounds},
		{"MissingObjects", testMissing},
		{"ListIsSortedAndDeep", testList},
		{"DeleteIsIdempotent", testDelete},
		{"BadNames", testBadNames},
		{"HoldIsSeenByOthers", testHold},
		{"LockExcludes", testLock},
		{"CleanSparesTheLiving", testClean},
		{"CancelledContext", testCancelled},
		{"ManyWriters", testMany},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, another := open(t)
			tt.f(t, s, another)
		})
	}
}

// Put writes an object or fails the test.
func Put(t testing.TB, s store.Store, name string, mode store.Mode, body []byte) {
	t.Helper()
	if err := put(s, name, mode, body); err != nil {
		t.Fatal(err)
	}
}

func put(s store.Store, name string, mode store.Mode, body []byte) error {
	w, err := s.Create(context.Background(), name, mode)
	if err != nil {
		return err
	}
	defer w.Abort()
	// In two writes, so that appending is seen to work.
	for _, part := range [][]byte{body[:len(body)/2], body[len(body)/2:]} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return w.Commit(context.Background())
}

func get(t *testing.T, s store.Store, name string) []byte {
	t.Helper()
	size, err := s.Size(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if err := s.ReadAt(context.Background(), name, b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func names(t *testing.T, s store.Store, dir string) (list []string) {
	t.Helper()
	infos, err := s.List(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		list = append(list, fmt.Sprintf("%s=%d", i.Name, i.Size))
	}
	return list
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error is %v, want %v", err, want)
	}
}

func testCommit(t *testing.T, s store.Store, another func() store.Store) {
	w, err := s.Create(t.Context(), "a/b/c", store.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	_, err = another().Size(t.Context(), "a/b/c")
	wantErr(t, err, store.ErrNotExist)
	if got := names(t, s, "a"); len(got) != 0 {
		t.Errorf("before commit the list is %v", got)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if got := get(t, another(), "a/b/c"); string(got) != "hello" {
		t.Errorf("object is %q", got)
	}
}

func testAbort(t *testing.T, s store.Store, another func() store.Store) {
	w, err := s.Create(t.Context(), "a/b", store.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	w.Abort()
	_, err = s.Size(t.Context(), "a/b")
	wantErr(t, err, store.ErrNotExist)
}

func testExclusive(t *testing.T, s store.Store, another func() store.Store) {
	Put(t, s, "x", store.Exclusive, []byte("first"))
	wantErr(t, put(another(), "x", store.Exclusive, []byte("second")), store.ErrExist)
	if got := get(t, s, "x"); string(got) != "first" {
		t.Errorf("object is %q", got)
	}
}

func testReplace(t *testing.T, s store.Store, another func() store.Store) {
	Put(t, s, "x", store.Replace, []byte("first"))
	Put(t, s, "x", store.Replace, []byte("2"))
	if got := get(t, another(), "x"); string(got) != "2" {
		t.Errorf("object is %q", got)
	}
}

func testReadBounds(t *testing.T, s store.Store, _ func() store.Store) {
	Put(t, s, "x", store.Exclusive, []byte("0123456789"))
	p := make([]byte, 4)
	if err := s.ReadAt(t.Context(), "x", p, 6); err != nil || string(p) != "6789" {
		t.Errorf("read %q, %v", p, err)
	}
	for _, off := range []int64{7, 10, 1 << 40} {
		wantErr(t, s.ReadAt(t.Context(), "x", p, off), store.ErrShort)
	}
	if err := s.ReadAt(t.Context(), "x", nil, 10); err != nil {
		t.Errorf("reading nothing: %v", err)
	}
}

func testMissing(t *testing.T, s store.Store, _ func() store.Store) {
	wantErr(t, s.ReadAt(t.Context(), "no/such", make([]byte, 1), 0), store.ErrNotExist)
	_, err := s.Size(t.Context(), "no/such")
	wantErr(t, err, store.ErrNotExist)
	if got := names(t, s, "no"); len(got) != 0 {
		t.Errorf("list of nothing is %v", got)
	}
	if held, err := s.Held(t.Context(), "no/such"); held || err != nil {
		t.Errorf("held is %v, %v", held, err)
	}
}

func testList(t *testing.T, s store.Store, _ func() store.Store) {
	for _, name := range []string{"p/bb/2", "p/aa/1", "p/x", "pp/y", "q"} {
		Put(t, s, name, store.Exclusive, []byte(name))
	}
	if got, want := fmt.Sprint(names(t, s, "p")), "[p/aa/1=6 p/bb/2=6 p/x=3]"; got != want {
		t.Errorf("list is %v, want %v", got, want)
	}
}

func testDelete(t *testing.T, s store.Store, another func() store.Store) {
	for _, name := range []string{"p/1", "p/2", "q/3"} {
		Put(t, s, name, store.Exclusive, nil)
	}
	for range 2 {
		if err := s.Delete(t.Context(), "p/1", "q/3", "nowhere/4"); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(names(t, another(), "p"), names(t, another(), "q")); got != "[p/2=0] []" {
		t.Errorf("left are %v", got)
	}
}

func testBadNames(t *testing.T, s store.Store, _ func() store.Store) {
	for _, name := range []string{"", "/", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a\x00b", "a b", "ä"} {
		if err := put(s, name, store.Replace, nil); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
}

func testHold(t *testing.T, s store.Store, another func() store.Store) {
	h, err := s.Hold(t.Context(), "leases/1", []byte("me"))
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range []store.Store{s, another()} {
		if held, err := v.Held(t.Context(), "leases/1"); !held || err != nil {
			t.Errorf("view %d: held is %v, %v", i, held, err)
		}
	}
	if got := get(t, another(), "leases/1"); string(got) != "me" {
		t.Errorf("body is %q", got)
	}
	_, err = another().Hold(t.Context(), "leases/1", nil)
	wantErr(t, err, store.ErrExist)
	for range 2 {
		if err := h.Release(); err != nil {
			t.Fatal(err)
		}
	}
	if held, err := s.Held(t.Context(), "leases/1"); held || err != nil {
		t.Errorf("after release held is %v, %v", held, err)
	}
	if got := names(t, s, "leases"); len(got) != 0 {
		t.Errorf("after release the list is %v", got)
	}
	// An object that is simply there has no holder.
	Put(t, s, "leases/2", store.Exclusive, []byte("dead"))
	if held, err := s.Held(t.Context(), "leases/2"); held || err != nil {
		t.Errorf("held is %v, %v", held, err)
	}
}

func testLock(t *testing.T, s store.Store, another func() store.Store) {
	lock, err := s.Lock(t.Context(), "locks/x")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = another().Lock(ctx, "locks/x")
	wantErr(t, err, context.DeadlineExceeded)
	other, err := s.Lock(t.Context(), "locks/y")
	if err != nil {
		t.Fatal(err)
	}
	release := func(l store.Hold) {
		t.Helper()
		if err := l.Err(); err != nil {
			t.Errorf("a lock that is held: %v", err)
		}
		for range 2 {
			if err := l.Release(); err != nil {
				t.Error(err)
			}
		}
	}
	release(other)
	release(lock)
	lock, err = another().Lock(t.Context(), "locks/x")
	if err != nil {
		t.Fatal(err)
	}
	release(lock)
}

func testClean(t *testing.T, s store.Store, another func() store.Store) {
	w, err := s.Create(t.Context(), "x", store.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	h, err := s.Hold(t.Context(), "leases/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := another().Clean(t.Context()); n != 0 || err != nil {
		t.Errorf("clean freed %d, %v", n, err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if held, err := s.Held(t.Context(), "leases/1"); !held || err != nil {
		t.Errorf("held is %v, %v", held, err)
	}
	if err := h.Release(); err != nil {
		t.Fatal(err)
	}
}

func testCancelled(t *testing.T, s store.Store, _ func() store.Store) {
	w, err := s.Create(t.Context(), "x", store.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, w.Commit(ctx), context.Canceled)
	_, err = s.Size(t.Context(), "x")
	wantErr(t, err, store.ErrNotExist)
	_, err = s.Hold(ctx, "leases/1", nil)
	wantErr(t, err, context.Canceled)
}

func testMany(t *testing.T, s store.Store, another func() store.Store) {
	var wg sync.WaitGroup
	for i := range 8 {
		v := another()
		wg.Go(func() {
			for j := range 8 {
				name := fmt.Sprintf("p/%02x/%d-%d", j, i, j)
				if err := put(v, name, store.Exclusive, bytes.Repeat([]byte{byte(i)}, 100*j)); err != nil {
					t.Error(err)
				}
				if _, err := v.Clean(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := names(t, s, "p"); len(got) != 64 {
		t.Errorf("%d objects, want 64", len(got))
	}
}
