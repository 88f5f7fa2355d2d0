package hostagent

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent/internal/memservice"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const size = 4 << 20

// world is a pool in memory, with a real repository.
type world struct {
	t    *testing.T
	svc  *memservice.Service
	repo *backup.Repository
	path string // of the repository
}

func newWorld(t *testing.T, extents int64, volumes ...string) *world {
	t.Helper()
	w := &world{t: t, svc: memservice.New(t.TempDir(), extents), path: filepath.Join(t.TempDir(), "repo")}
	repo, err := backup.Init(t.Context(), w.path, backup.InitOptions{ChunkSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := repo.Close(); err != nil {
			t.Error(err)
		}
		if n := w.svc.Snapshots(); n != 0 {
			t.Errorf("%d snapshots are left open", n)
		}
	})
	w.repo = repo
	for _, name := range volumes {
		w.volume(name)
	}
	return w
}

// volume makes a volume of random content.
func (w *world) volume(name string) api.Volume {
	w.t.Helper()
	v, err := w.svc.CreateVolume(w.t.Context(), api.CreateVolumeRequest{Name: name, Size: size})
	if err != nil {
		w.t.Fatal(err)
	}
	w.write(name, uint64(len(name)))
	return v
}

func content(seed uint64) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i < size/2; i++ { // the second half are zeroes
		b[i] = byte(r.Uint32())
	}
	return b
}

func (w *world) write(name string, seed uint64) {
	w.t.Helper()
	if err := os.WriteFile(w.show(name).Device, content(seed), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) show(name string) api.Volume {
	w.t.Helper()
	v, err := w.svc.Volume(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// holds fails unless a volume shows the content of a seed.
func (w *world) holds(name string, seed uint64) {
	w.t.Helper()
	got, err := os.ReadFile(w.show(name).Device)
	if err != nil {
		w.t.Fatal(err)
	}
	if !bytes.Equal(got, content(seed)) {
		w.t.Errorf("volume %s does not hold content %d", name, seed)
	}
}

func (w *world) backup(names ...string) backup.Backup {
	w.t.Helper()
	b, err := Backup(w.t.Context(), BackupOptions{Service: w.svc, Repo: w.repo, Volumes: names})
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) names() []string {
	w.t.Helper()
	list, err := w.svc.Volumes(w.t.Context(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, v := range list {
		names = append(names, v.Name)
	}
	slices.Sort(names)
	return names
}

// damage flips bytes in every pack of the repository.
func (w *world) damage() {
	w.t.Helper()
	n := 0
	err := filepath.WalkDir(filepath.Join(w.path, "packs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := len(b) / 4; i < len(b)/2; i++ {
			b[i] ^= 0xff
		}
		n++
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		return os.WriteFile(path, b, 0o600)
	})
	if err != nil || n == 0 {
		w.t.Fatalf("%d packs damaged: %v", n, err)
	}
}

// damageManifest cuts a backup's manifest short.
func (w *world) damageManifest(b backup.Backup) {
	w.t.Helper()
	path := filepath.Join(w.path, "backups", b.ID)
	if err := os.Chmod(path, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Truncate(path, 100); err != nil {
		w.t.Fatal(err)
	}
}

// says fails unless a text holds all the parts.
func says(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not said in:\n%s", p, text)
		}
	}
}
