package runner

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSecretsStayInTheStep: what a job's file holds, in variables and in
// scripts, is in none of the places where a run leaves its traces: terminal,
// logs, state, locks, the result, labels and backups. The step fails and is put
// back, so that every kind of message is made.
func TestSecretsStayInTheStep(t *testing.T) {
	const variable, inScript, inArgument = "variable-hush", "script-hush", "argument-hush"
	w := newWorld(t, 10, "db")
	o := w.options("[{name: db}]", `
steps:
  - {name: argv, run: [test, -n, `+inArgument+`]}
  - name: script
    retries: 1
    env: {PASSWORD: `+variable+`}
    run: |
      # `+inScript+`
      test "$PASSWORD" = "`+variable+`"
      for p in $$ $PPID; do tr '\0' ' ' < /proc/$p/cmdline; done
      put $SWAPBACK_DEVICE_DB bad
      sleep 1000 & # a stray is named in the log
      exit 42
  - {name: not-to-be-started, run: [no-such-program-here, `+inArgument+`]}
`)
	res := w.run(o, ExitFailed, "step 2/3 script FAILED", "exit code 42")
	if len(res.Recoveries) != 2 {
		t.Fatalf("%+v", res)
	}
	result, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	look := func(where, text string) {
		if i := strings.Index(text, "-hush"); i >= 0 {
			t.Errorf("%s has a secret: …%s…", where, text[max(0, i-60):min(len(text), i+20)])
		}
	}
	look("the terminal", w.out.String())
	look("the result", string(result))
	volumes, err := w.svc.Volumes(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	labels, err := json.Marshal(volumes)
	if err != nil {
		t.Fatal(err)
	}
	look("a volume's label", string(labels))
	files := 0
	err = filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		files++
		look(path, string(text))
		return err
	})
	if err != nil || files < 6 {
		t.Errorf("%d files were looked at: %v", files, err)
	}
}

// TestTracesArePrivate: logs and states tell what a job did to whom, and a lock
// that others can open is one that others can hold.
func TestTracesArePrivate(t *testing.T) {
	w := newWorld(t, 10, "db")
	o := w.options("[{name: db}]", "steps: [{name: one, run: [echo, done]}]")
	res := w.run(o, ExitDone)
	for _, path := range []string{res.Log, res.Events, filepath.Join(o.StateDir, "j.json"), filepath.Join(o.RunDir, "locks", "job-j.lock")} {
		for ; path != w.dir; path = filepath.Dir(path) {
			fi, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			// The folder of locks, logs and states may be there already; what is
			// ours is what lies in it.
			if fi.Mode().Perm()&0o007 != 0 && filepath.Dir(path) != w.dir {
				t.Errorf("%s is %v", path, fi.Mode())
			}
		}
	}
}

// TestStateIsNamedByAJob: a name that is none is not made a path of.
func TestStateIsNamedByAJob(t *testing.T) {
	w := newWorld(t, 10, "db")
	o := w.options("[{name: db}]", "steps: [{name: one, run: [echo, done]}]")
	w.run(o, ExitDone)
	for _, name := range []string{"../state/j", "./j", "", ".", "/etc/passwd", "j\x00", "x/../j"} {
		if s, err := ReadState(o.StateDir, name); err == nil {
			t.Errorf("the state of job %q was read: %+v", name, s)
		}
	}
}
