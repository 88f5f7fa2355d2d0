package backup

import (
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store"
	"github.com/swapback/swapback/backup/internal/store/s3test"
)

// While an image is open its packs stay, though its backup is deleted and others
// prune; afterwards they go.
func TestImageKeepsItsPacks(t *testing.T) {
	r, m := memRepo(t)
	content := random(1, 20)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	im := openImage(t, r, ImageOptions{CacheBytes: smallCache})
	other := view(t, m, 2)
	if _, rep, err := other.Delete(t.Context(), b.ID); err != nil || rep.Packs != 0 || rep.Waiting == 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if _, err := other.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Error(err)
	}
	readAll(t, im, content, 10_000)
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	if rep, err := other.Prune(t.Context(), PruneOptions{}); err != nil || rep.Packs == 0 || len(packNames(m)) != 0 {
		t.Errorf("%+v, %v, left: %v", rep, err, packNames(m))
	}
}

// An image whose lease in a bucket could not be renewed says so, takes another one
// when it can, and then keeps its packs again. When the backup was deleted
// meanwhile it says that.
func TestImageLeaseInABucket(t *testing.T) {
	long(t)
	server := s3test.Start(t)
	var down atomic.Bool
	proxy := s3test.NewProxy(t, server, func(int, *http.Request) s3test.Fault {
		if down.Load() {
			return s3test.Cut
		}
		return s3test.None
	})
	const holdTime = 4 * time.Second
	open := func(addr string) *store.S3 {
		s, err := store.OpenS3(server.Location(addr, "image"), store.S3Options{HoldTime: holdTime, Attempts: 1, Creds: s3test.Creds()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	direct := open("")
	other, err := initStore(t.Context(), direct, InitOptions{ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	content := random(1, 6)
	gone := create(t, other, CreateOptions{}, source(t, "gone", append(random(2, 2), content...)))
	b := create(t, other, CreateOptions{}, source(t, "a", content))
	if err := other.removeManifest(t.Context(), backupDir+"/"+gone.ID); err != nil {
		t.Fatal(err)
	}
	r, err := openStore(t.Context(), open(proxy.Addr), Secret{})
	if err != nil {
		t.Fatal(err)
	}
	var told []error
	im := openImage(t, r, ImageOptions{Lease: func(err error) { told = append(told, err) }})

	lose := func() {
		t.Helper()
		down.Store(true)
		for im.lease.session.hold.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		im.checkLease(t.Context())
		im.checkLease(t.Context()) // tells it once
		down.Store(false)
	}
	im.checkLease(t.Context())
	if len(told) != 0 {
		t.Fatalf("with a good lease: %v", told)
	}
	lost, before := im.lease.session.id, *im.root.Load()
	readAll(t, im, content[:testChunk], 8192)
	lose()
	if len(told) != 1 || told[0] == nil {
		t.Fatalf("told %v", told)
	}
	// Its lease is dead, so what is moved now is removed where it was.
	if err := direct.Delete(t.Context(), leaseDir+"/"+lost.String()); err != nil {
		t.Fatal(err)
	}
	if rep, err := other.Prune(t.Context(), PruneOptions{Repack: true}); err != nil || rep.Packs == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	im.checkLease(t.Context())
	if *im.root.Load() == before {
		t.Error("nothing was moved")
	}
	if len(told) != 2 || told[1] != nil || im.lease.session.id == lost {
		t.Fatalf("told %v", told)
	}
	readAll(t, im, content, 10_000)
	leases, err := direct.List(t.Context(), leaseDir)
	if err != nil || len(leases) != 1 || leases[0].Name != leaseDir+"/"+im.lease.session.id.String() {
		t.Errorf("leases: %+v, %v", leases, err)
	}

	lose()
	if _, _, err := other.Delete(t.Context(), b.ID); err != nil {
		t.Error(err)
	}
	im.checkLease(t.Context())
	im.checkLease(t.Context())
	if len(told) != 4 || !errors.Is(told[3], ErrNotFound) {
		t.Errorf("told %v", told)
	}
	if im.lease.session.id == (format.ID{}) {
		t.Error("no session")
	}
}
