package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// deltaRepo makes a repository whose chunks are several grains, with one backup.
func deltaRepo(t *testing.T, content []byte) (*Repository, *storetest.Mem, Backup) {
	t.Helper()
	m := storetest.NewMem()
	r, err := initStore(t.Context(), m, InitOptions{ChunkSize: 4 * deltaGrain, Recipients: []string{recipient}})
	if err != nil {
		t.Fatal(err)
	}
	predictable(r, 1).packSize = 8 * deltaGrain
	return r, m, create(t, r, CreateOptions{}, source(t, "a", content))
}

// differs is how many bytes the grains have in which two images differ.
func differs(a, b []byte) (n int64) {
	for at := 0; at < len(a); at += deltaGrain {
		end := min(at+deltaGrain, len(a))
		if !bytes.Equal(a[at:end], b[at:end]) {
			n += int64(end - at)
		}
	}
	return n
}

// Whatever a target has, a differential restore makes it the backup, and writes
// what differs and nothing else.
func TestDeltaWritesWhatDiffers(t *testing.T) {
	content := image(1, 203)
	r, _, b := deltaRepo(t, content)
	moved := append(bytes.Clone(content[deltaGrain:]), content[:deltaGrain]...)
	head := bytes.Repeat([]byte{0xd1}, len(content))
	copy(head, content[:len(content)/2])
	for name, have := range map[string][]byte{
		"the same":                 content,
		"some bytes changed":       change(content, 3),
		"the first byte":           append([]byte{content[0] ^ 1}, content[1:]...),
		"the last byte":            append(bytes.Clone(content[:len(content)-1]), content[len(content)-1]^1),
		"all zero":                 make([]byte, len(content)),
		"stale":                    bytes.Repeat([]byte{0xd1}, len(content)),
		"the same, moved":          moved,
		"an interrupted restore's": head,
	} {
		for _, verify := range []bool{false, true} {
			target := write(t, have)
			res := restore(t, r, RestoreOptions{Backup: b.ID, Target: target, Delta: true, VerifyAfter: verify})
			wantContent(t, name, target, content)
			want := differs(have, content)
			if got := res.DataBytes + res.ZeroBytes; got != want || got+res.UnchangedBytes != int64(len(content)) || res.Verified != verify || res.Incomplete {
				t.Errorf("%s: want %d bytes written, result is %+v", name, want, res)
			}
			if name == "the same" {
				// Only the table was read, by whoever makes tasks of it.
				if st, _ := os.Stat(target); res.ReadBytes != 0 || st.Size() != int64(len(content)) {
					t.Errorf("%s: result is %+v", name, res)
				}
			}
		}
	}
}

// Whatever two images are, the way from one to the other is exact.
func TestDeltaBetweenRandomImages(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	for i := range uint64(12) {
		content := image(i, 10+rnd.IntN(60))
		content = content[:len(content)-rnd.IntN(512)]
		r, _, b := deltaRepo(t, content)
		have := image(i+100, 80)[:len(content)]
		for n := rnd.IntN(40); n > 0; n-- { // parts that are right
			off := rnd.IntN(len(content))
			copy(have[off:min(off+rnd.IntN(300_000), len(content))], content[off:])
		}
		target := write(t, append(bytes.Clone(have), 1, 2, 3))
		res := restore(t, r, RestoreOptions{Backup: b.ID, Target: target, Delta: true, VerifyAfter: true, AllowLarger: true})
		wantContent(t, fmt.Sprint(i), target, append(bytes.Clone(content), 0, 0, 0))
		if want := differs(have, content); res.DataBytes+res.ZeroBytes != want {
			t.Errorf("%d: %d bytes differ, result is %+v", i, want, res)
		}
	}
}

// A hole is zeroes without being read, and stays one; a new file gets holes.
func TestRestoreKeepsHoles(t *testing.T) {
	content := make([]byte, 64<<20)
	copy(content[20<<20:], bytes.Repeat([]byte("data"), 100_000))
	r, _, b := deltaRepo(t, content)
	target := filepath.Join(t.TempDir(), "new")
	restore(t, r, RestoreOptions{Backup: b.ID, Target: target, CreateTarget: true})
	allocated := func() int64 {
		st, err := os.Stat(target)
		if err != nil {
			t.Fatal(err)
		}
		return st.Sys().(*syscall.Stat_t).Blocks * 512
	}
	if n := allocated(); n > 4<<20 {
		t.Errorf("the new file takes %d bytes", n)
	}
	res := restore(t, r, RestoreOptions{Backup: b.ID, Target: target, Delta: true})
	if n := allocated(); n > 4<<20 || res.UnchangedBytes != int64(len(content)) {
		t.Errorf("the file takes %d bytes now, result is %+v", n, res)
	}
	wantContent(t, "holes", target, content)
	if err := os.WriteFile(target, bytes.Repeat([]byte{1}, len(content)), 0o600); err != nil {
		t.Fatal(err)
	}
	restore(t, r, RestoreOptions{Backup: b.ID, Target: target})
	if n := allocated(); n > 4<<20 {
		t.Errorf("the file that was written over takes %d bytes", n)
	}
	wantContent(t, "written over", target, content)
}

// What the target has already needs no repository, however damaged that is; what
// is missing stays as the target had it.
func TestDeltaAroundDamage(t *testing.T) {
	const chunk, zero = 4 * deltaGrain, 8 * 4 * deltaGrain
	content := image(1, 200)
	clear(content[zero:][:chunk])
	r, m, b := deltaRepo(t, content)
	for _, name := range packNames(m) {
		if id, err := format.ParseID(filepath.Base(name)); err != nil || id.String() != b.Volumes[0].Table.Pack {
			m.SetObject(name, nil) // all chunks
		}
	}
	target := write(t, content)
	res := restore(t, r, RestoreOptions{Backup: b.ID, Target: target, Delta: true, VerifyAfter: true})
	if !res.Verified || res.MissingBytes != 0 {
		t.Errorf("result is %+v", res)
	}

	have := bytes.Clone(content)
	at := bytes.IndexFunc(content, func(c rune) bool { return c != 0 }) // in a chunk that is not zero
	have[at] ^= 1
	copy(have[len(have)-10:], "0123456789")
	have[zero+deltaGrain+5] = 9
	target = write(t, have)
	res, err := r.Restore(t.Context(), RestoreOptions{Backup: b.ID, Target: target, Delta: true, VerifyAfter: true})
	wantErr(t, "damaged", err, ErrDamaged, "as the target had them")
	want := bytes.Clone(have)
	want[zero+deltaGrain+5] = 0 // zeroes need no repository either
	wantContent(t, "damaged", target, want)
	var listed int64
	for _, bad := range res.Bad {
		listed += bad.Length
		if !(bad.Offset <= int64(at) && int64(at) < bad.end()) && bad.end() != int64(len(content)) {
			t.Errorf("range %+v was not damaged", bad)
		}
	}
	if res.MissingBytes != listed || res.DataBytes+res.ZeroBytes+res.UnchangedBytes+res.MissingBytes != int64(len(content)) || res.Verified || res.Incomplete {
		t.Errorf("result is %+v", res)
	}
}

// A restore that is broken off at any read says what it leaves, and one with Delta
// goes on from there.
func TestInterruptedRestoreGoesOn(t *testing.T) {
	content := image(1, 100)
	r, m := memRepo(t)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	var kept int64
	for n := 1; ; n += 4 {
		target := filepath.Join(t.TempDir(), "new")
		ctx, cancel := context.WithCancel(t.Context())
		reads := 0
		m.Before = func(op storetest.Op) error {
			if op.Kind == "read" && strings.HasPrefix(op.Name, "packs/") {
				if reads++; reads == n {
					cancel()
					return ctx.Err()
				}
			}
			return nil
		}
		res, err := r.Restore(ctx, RestoreOptions{Backup: b.ID, Target: target, CreateTarget: true, Parallel: 1})
		cancel()
		m.Before = nil
		if err == nil {
			break
		}
		_, serr := os.Stat(target)
		if !errors.Is(err, context.Canceled) || res.Incomplete != (serr == nil) || res.Incomplete != (res.DataBytes > 0) {
			t.Fatalf("read %d: %v, %v, %+v", n, err, serr, res)
		}
		if !res.Incomplete {
			continue // nothing was written, and the file is gone
		}
		next := restore(t, r, RestoreOptions{Backup: b.ID, Target: target, Delta: true, VerifyAfter: true})
		wantContent(t, "gone on", target, content)
		if want := b.Volumes[0].DataBytes - res.DataBytes; next.DataBytes > want || next.ReadBytes == 0 {
			t.Errorf("read %d: %d bytes were left to write, result is %+v", n, want, next)
		}
		kept += res.DataBytes
	}
	if kept == 0 {
		t.Error("no restore got anywhere: the test does not test")
	}
}

// A process that is killed while it restores leaves what the next one completes.
func TestKilledRestoreGoesOn(t *testing.T) {
	long(t)
	path := filepath.Join(t.TempDir(), "repo")
	r, err := Init(t.Context(), path, InitOptions{ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	content := image(1, 600)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	target := dirty(t, len(content))
	killed := 0
	for n := 4; child(t, "restore "+b.ID, path, target, n); n += 5 {
		killed++
	}
	wantContent(t, "in the end", target, content)
	target = dirty(t, len(content))
	if !child(t, "restore "+b.ID, path, target, 9) {
		t.Error("the child was not killed")
	}
	res := restore(t, r, RestoreOptions{Backup: b.ID, Target: target, Delta: true, VerifyAfter: true})
	wantContent(t, "gone on", target, content)
	if killed < 2 || res.UnchangedBytes == 0 || res.DataBytes == 0 {
		t.Errorf("%d were killed; result is %+v", killed, res)
	}
}
