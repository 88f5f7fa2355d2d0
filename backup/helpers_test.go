package backup

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"go.uber.org/goleak"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		runChild()
		return
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		panic(err)
	}
	dir, err := os.MkdirTemp("", "swapback-identity")
	if err != nil {
		panic(err)
	}
	identity, recipient = filepath.Join(dir, "identity.txt"), id.Recipient().String()
	if err := os.WriteFile(identity, []byte(id.String()), 0o600); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// Repositories in memory are encrypted for this recipient, those in folders are
// not: each test runs on one or the other.
var identity, recipient string

// secretOf is what opens a test's repository.
func secretOf(st store.Store) Secret {
	if c, err := readConfig(context.Background(), st); err == nil && c.Encryption != encryptionNone {
		return Secret{IdentityFiles: []string{identity}}
	}
	return Secret{}
}

const (
	testChunk = format.MinChunk
	testPack  = 5 * testChunk // so that a small image makes several packs
)

// predictable makes a repository's clock and IDs count up from a seed.
func predictable(r *Repository, seed uint32) *Repository {
	var n atomic.Uint32
	r.newID = func() (id format.ID) {
		binary.BigEndian.PutUint32(id[:], seed<<16+n.Add(1))
		return id
	}
	start := time.Date(2026, 11, 23, 10, 15, int(seed), 0, time.UTC)
	r.now = func() time.Time { return start.Add(time.Duration(n.Load()) * time.Millisecond) }
	r.packSize = testPack
	return r
}

// memRepo makes a repository in memory.
func memRepo(t testing.TB) (*Repository, *storetest.Mem) {
	t.Helper()
	m := storetest.NewMem()
	r, err := initStore(t.Context(), m, InitOptions{ChunkSize: testChunk, Recipients: []string{recipient}})
	if err != nil {
		t.Fatal(err)
	}
	return predictable(r, 1), m
}

// view opens a repository as another process would.
func view(t testing.TB, m *storetest.Mem, seed uint32) *Repository {
	t.Helper()
	r, err := openStore(context.Background(), m, secretOf(m))
	if err != nil {
		t.Fatal(err)
	}
	return predictable(r, seed)
}

// image makes the content of a volume: chunks that are zero, compressible, random
// or the same as an earlier one, and a tail that is no whole chunk.
func image(seed uint64, chunks int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	cc := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, chunks*testChunk+512)
	for i := range chunks {
		c := b[i*testChunk:][:testChunk]
		switch rnd.IntN(4) {
		case 0: // zero
		case 1:
			copy(c, bytes.Repeat(fmt.Appendf(nil, "%d account %d\n", i, rnd.IntN(1000)), testChunk/10))
		case 2:
			cc.Read(c)
		case 3:
			copy(c, b[rnd.IntN(i+1)*testChunk:][:testChunk])
		}
	}
	cc.Read(b[chunks*testChunk:])
	return b
}

// change returns a copy with some bytes changed, zeroed and moved.
func change(b []byte, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 2))
	b = bytes.Clone(b)
	for range 4 {
		b[rnd.IntN(len(b))] ^= 0xff
	}
	clear(b[rnd.IntN(len(b)-100):][:100])
	return b
}

func write(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func source(t testing.TB, name string, content []byte) Source {
	t.Helper()
	return Source{Path: write(t, content), Volume: VolumeRef{
		Pool: "tank", Name: name, UUID: "uuid-" + name, Size: int64(len(content)), Generation: 7, PositionID: "pos-" + name}}
}

func create(t testing.TB, r *Repository, o CreateOptions, sources ...Source) Backup {
	t.Helper()
	b, err := r.Create(t.Context(), sources, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dirty makes a target full of stale data.
func dirty(t testing.TB, size int) string {
	t.Helper()
	return write(t, bytes.Repeat([]byte{0xd1}, size))
}

func restore(t testing.TB, r *Repository, o RestoreOptions) RestoreResult {
	t.Helper()
	res, err := r.Restore(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func wantContent(t testing.TB, what, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d bytes, want %d", what, len(got), len(want))
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: byte %d differs", what, i)
			return
		}
	}
}

// images is what the backups of a repository must be, by ID and volume name.
type images map[string]map[string][]byte

// fullCheck checks a repository as a whole: nothing is damaged, the backups are
// those that are wanted, and every one restores to its content.
func fullCheck(t testing.TB, st store.Store, want images) {
	t.Helper()
	r, err := openStore(context.Background(), st, secretOf(st))
	if err != nil {
		t.Fatal(err)
	}
	checkAll(t, r, want)
}

// checkAll is fullCheck for a repository that is open.
func checkAll(t testing.TB, r *Repository, want images) {
	t.Helper()
	list, err := r.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != len(want) {
		t.Errorf("%d backups, want %d", len(list), len(want))
	}
	if rep, err := r.Verify(context.Background(), VerifyOptions{Parallel: 2}); err != nil {
		t.Errorf("verify: %v (%+v)", err, rep)
	}
	for _, b := range list {
		for _, v := range b.Volumes {
			content, there := want[b.ID][v.Name]
			if !there {
				t.Errorf("volume %s of backup %s was not wanted", v.Name, b.ID)
				continue
			}
			target := dirty(t, len(content))
			if _, err := r.Restore(context.Background(), RestoreOptions{Backup: b.ID, Volume: v.UUID, Target: target, Parallel: 2}); err != nil {
				t.Error(err)
				continue
			}
			wantContent(t, b.ID+" "+v.Name, target, content)
		}
	}
}

// textObject is a text object with a right header and checksum, see
// format/text.go. The body stays as it is.
func textObject(kind string, body []byte) []byte {
	head := fmt.Sprintf("swapback-%-12s v%03d length %012d crc32c ", kind, format.TextVersion, len(body))
	sum := crc32.Checksum(slices.Concat([]byte(head), body), crc32.MakeTable(crc32.Castagnoli))
	return slices.Concat(fmt.Appendf(nil, "%s%08x \n", head, sum), body)
}

// packNames returns how many packs there are.
func packNames(m *storetest.Mem) []string { return m.Names("packs") }

// chunkRefs returns where the distinct chunks of all backups lie, in the order of the
// newest backup first.
func chunkRefs(t testing.TB, r *Repository) (refs []format.Ref) {
	t.Helper()
	list, err := r.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	tb, err := r.newTables(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer tb.close()
	for _, b := range slices.Backward(list) {
		for _, v := range b.Volumes {
			err := tb.volume(b, v, seen{chunk: func(_ int64, ref format.Ref) error {
				refs = append(refs, ref)
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return refs
}

// long is for tests that go through very much: they would take the race detector
// many minutes, and run without it.
func long(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("a long test; leave -short out")
	}
}
