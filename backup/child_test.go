package backup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store"
)

// The test program runs itself as a child that is killed in the middle of an
// operation on a real folder. These variables tell the child what to do.
const (
	childEnv = "SWAPBACK_TEST_CHILD" // "create", "delete ID" or "restore ID"
	repoEnv  = "SWAPBACK_TEST_REPO"
	imageEnv = "SWAPBACK_TEST_IMAGE"
	killEnv  = "SWAPBACK_TEST_KILL" // before which operation
	noteEnv  = "SWAPBACK_TEST_NOTE" // notes its packs whenever it can
)

// killStore kills its process before the n-th operation that changes the store, or
// before the n-th read.
type killStore struct {
	store.Store
	ops   *atomic.Int64
	kill  int64
	reads bool
}

func (k killStore) step() {
	if k.ops.Add(1) == k.kill {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // it comes when the kernel gets to it
	}
}

func (k killStore) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if k.reads && strings.HasPrefix(name, "packs/") {
		k.step()
	}
	return k.Store.ReadAt(ctx, name, p, off)
}

func (k killStore) Create(ctx context.Context, name string, mode store.Mode) (store.Writer, error) {
	if !k.reads {
		k.step()
	}
	w, err := k.Store.Create(ctx, name, mode)
	return killWriter{w, k}, err
}

func (k killStore) Delete(ctx context.Context, names ...string) error {
	for _, name := range names {
		k.step()
		if err := k.Store.Delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (k killStore) Hold(ctx context.Context, name string, body []byte) (store.Hold, error) {
	if !k.reads {
		k.step()
	}
	return k.Store.Hold(ctx, name, body)
}

type killWriter struct {
	store.Writer
	k killStore
}

func (w killWriter) Write(p []byte) (int, error) {
	w.k.step()
	return w.Writer.Write(p)
}

func (w killWriter) Commit(ctx context.Context) error {
	w.k.step()
	return w.Writer.Commit(ctx)
}

// runChild is the child. It prints how many operations there were.
func runChild() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if base, is := strings.CutPrefix(os.Getenv(childEnv), "scale "); is {
		fail(runScale(base))
		return
	}
	if os.Getenv(childEnv) == "memory" {
		fail(runMemory())
		return
	}
	kill, err := strconv.ParseInt(os.Getenv(killEnv), 10, 64)
	fail(err)
	folder, err := store.OpenFolder(os.Getenv(repoEnv))
	fail(err)
	what, id, _ := strings.Cut(os.Getenv(childEnv), " ")
	k := killStore{Store: folder, ops: new(atomic.Int64), kill: kill, reads: what == "restore"}
	r, err := openStore(context.Background(), k, Secret{})
	fail(err)
	r.packSize = testPack
	if os.Getenv(noteEnv) != "" {
		r.noteEvery = 1
	}
	switch image := os.Getenv(imageEnv); what {
	case "create":
		_, err = r.Create(context.Background(), []Source{{Path: image, Volume: VolumeRef{Name: "a"}}}, CreateOptions{})
	case "restore":
		_, err = r.Restore(context.Background(), RestoreOptions{Backup: id, Target: image, Delta: true, Parallel: 2})
	case "delete":
		_, _, err = r.Delete(context.Background(), id)
	default:
		err = careChild[what](r, image)
	}
	fail(err)
	fmt.Println(k.ops.Load())
}

// child runs the child and tells whether it was killed.
func child(t *testing.T, what, repo, image string, kill int) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+what, repoEnv+"="+repo, imageEnv+"="+image, killEnv+"="+strconv.Itoa(kill))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
		t.Fatalf("child %q: %v: %s", what, err, out)
	}
	return true
}

// A real process that is really killed, at one operation after the other, on one
// folder: the backups that are there are good throughout, and what the dead leave
// is cleaned up while a living writer is not disturbed.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "repo")
	r, err := Init(t.Context(), path, InitOptions{ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.packSize = testPack
	first := image(1, 20)
	second := image(2, 20)
	b1 := create(t, r, CreateOptions{}, source(t, "a", first))
	want := images{b1.ID: {"a": first}}
	src := write(t, second)

	killed := 0
	for n := 1; child(t, "create", path, src, n); n += 3 {
		killed++
	}
	list, err := r.List(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("%d backups, %v", len(list), err)
	}
	want[list[1].ID] = map[string][]byte{"a": second}
	fullCheck(t, r.store, want)
	if temps, _ := filepath.Glob(path + "/tmp/*"); len(temps) == 0 {
		t.Error("the dead left no temporary file: the test does not test")
	}
	rep, err := r.Prune(t.Context(), PruneOptions{})
	if err != nil || rep.Packs == 0 || rep.Leases != 0 {
		t.Errorf("prune: %+v, %v", rep, err)
	}
	fullCheck(t, r.store, want)
	wantTidy(t, path)

	for n := 1; child(t, "delete "+list[1].ID, path, src, n); n++ {
		killed++
		if l, err := r.List(t.Context()); err != nil || len(l) == 1 {
			break
		}
	}
	delete(want, list[1].ID)
	if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	fullCheck(t, r.store, want)
	wantTidy(t, path)
	if killed < 10 {
		t.Errorf("only %d children were killed", killed)
	}
}

// wantTidy checks that nothing is left in a folder of what the dead leave.
func wantTidy(t *testing.T, path string) {
	t.Helper()
	for _, pattern := range []string{"/tmp/*", "/leases/*", "/gc/*"} {
		if left, _ := filepath.Glob(path + pattern); len(left) > 0 {
			t.Errorf("left are %v", left)
		}
	}
}

// The folder of a finished repository holds what the package says and no more.
func TestFolderLayout(t *testing.T) {
	path := t.TempDir()
	r, err := Init(t.Context(), path, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	content := image(1, 70)
	b := create(t, r, CreateOptions{}, source(t, "a", content))
	wantTidy(t, path)
	var names []string
	for _, dir := range []string{"packs", backupDir} {
		infos, err := r.store.List(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range infos {
			names = append(names, i.Name)
		}
	}
	if len(names) != 3 || names[2] != backupDir+"/"+b.ID {
		t.Errorf("objects are %v, want a pack of chunks, one of nodes and a manifest", names)
	}
	for _, name := range names[:2] {
		id, err := format.ParseID(filepath.Base(name))
		if err != nil {
			t.Error(err)
		}
		if st, err := os.Stat(filepath.Join(path, name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("pack %v: %v, %v", id, st, err)
		}
	}
	fullCheck(t, r.store, images{b.ID: {"a": content}})
}
