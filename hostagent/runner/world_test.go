package runner

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent/internal/memservice"
	"github.com/swapback/swapback/hostagent/job"
	"github.com/swapback/swapback/hostagent/story"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const size = 1 << 20

// world is volumes in memory, a real repository, and folders for an agent. The
// jobs' steps are real processes that write to the volumes' files.
type world struct {
	t    *testing.T
	svc  *memservice.Service
	dir  string
	out  bytes.Buffer // the terminal
	stop chan struct{}
}

func newWorld(t *testing.T, extents int64, volumes ...string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), stop: make(chan struct{})}
	w.svc = memservice.New(w.dir, extents)
	repo, err := backup.Init(t.Context(), w.repo(), backup.InitOptions{ChunkSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range volumes {
		if _, err := w.svc.CreateVolume(t.Context(), api.CreateVolumeRequest{Name: name, Size: size}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) repo() string { return filepath.Join(w.dir, "repo") }

// job reads a job whose repository and volumes are filled in. The function put
// writes a word to the beginning of a volume.
func (w *world) options(volumes, rest string) Options {
	w.t.Helper()
	text := fmt.Sprintf("name: j\nrepository: %s\nvolumes: %s\n%s", w.repo(), volumes, rest)
	j, err := job.Parse("job.yaml", []byte(text))
	if err != nil {
		w.t.Fatalf("%v in\n%s", err, text)
	}
	for i := range j.Steps {
		if s := &j.Steps[i].Run.Shell; *s != "" {
			*s = `put() { printf '%-16s' "$2" | dd of="$1" conv=notrunc status=none; }; cd ` + w.dir + "; " + *s
		}
	}
	return Options{
		Service: w.svc, Job: j, File: "job.yaml", Terminal: &w.out,
		StateDir: filepath.Join(w.dir, "state"), LogDir: filepath.Join(w.dir, "log"), RunDir: filepath.Join(w.dir, "run"),
	}
}

// run runs a job and fails the test unless it ends with an exit code and says
// the parts.
func (w *world) run(o Options, code int, parts ...string) Result {
	w.t.Helper()
	res, err := Run(w.t.Context(), w.stop, o)
	if err != nil {
		w.t.Fatal(err)
	}
	if res.ExitCode != code {
		w.t.Fatalf("exit code %d, want %d: %s\n%s", res.ExitCode, code, res.Outcome, &w.out)
	}
	says(w.t, w.out.String()+res.Outcome, parts...)
	s, err := ReadState(o.StateDir, "j")
	if err != nil || s.Phase != Ended || s.ExitCode == nil || *s.ExitCode != code || s.Died() {
		w.t.Errorf("state %+v, %v", s, err)
	}
	w.checkEvents(res)
	return res
}

// checkEvents reads the story for programs.
func (w *world) checkEvents(res Result) {
	w.t.Helper()
	f, err := os.Open(res.Events)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	var words []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var e story.Event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			w.t.Fatal(err)
		}
		words = append(words, e.Event)
	}
	if len(words) < 2 || words[0] != story.JobStarted || words[len(words)-1] != story.JobEnded {
		w.t.Errorf("events %q", words)
	}
	if n := len(res.Recoveries); n != count(words, story.Recovered) {
		w.t.Errorf("%d recoveries, events %q", n, words)
	}
}

func count(list []string, word string) (n int) {
	for _, s := range list {
		if s == word {
			n++
		}
	}
	return n
}

// shows fails unless a volume begins with a word.
func (w *world) shows(volume, word string) {
	w.t.Helper()
	v, err := w.svc.Volume(w.t.Context(), volume)
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := os.ReadFile(v.Device)
	if err != nil {
		w.t.Fatal(err)
	}
	if got := strings.Trim(string(text[:16]), " \x00"); got != word || len(text) != size {
		w.t.Errorf("volume %s shows %q, want %q (%d bytes)", volume, got, word, len(text))
	}
}

func (w *world) quarantined() []string {
	w.t.Helper()
	list, err := w.svc.Volumes(w.t.Context(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, v := range list {
		if v.Position.Quarantine != nil {
			names = append(names, v.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (w *world) backups() []backup.Backup {
	w.t.Helper()
	repo, err := backup.Open(w.t.Context(), w.repo(), backup.Secret{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer repo.Close()
	list, err := repo.List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

func says(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not said in:\n%s", p, text)
		}
	}
}

// waitFor waits until a file is there.
func waitFor(ctx context.Context, path string) error {
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}
