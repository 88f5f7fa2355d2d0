package job

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file beside the tests.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

func each(t *testing.T, pattern string, f func(t *testing.T, path string, text []byte)) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no files at %s: %v", pattern, err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f(t, path, text)
		})
	}
}

func TestGood(t *testing.T) {
	each(t, "testdata/good/*.yaml", func(t *testing.T, path string, text []byte) {
		j, err := Parse("job.yaml", text)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.MarshalIndent(j, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		golden(t, strings.TrimSuffix(path, ".yaml")+".json", string(b)+"\n")
	})
}

func TestBad(t *testing.T) {
	each(t, "testdata/bad/*.yaml", func(t *testing.T, path string, text []byte) {
		_, err := Parse("job.yaml", text)
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("got %v, want an *Error", err)
		}
		golden(t, strings.TrimSuffix(path, ".yaml")+".txt", err.Error()+"\n")
	})
}

func TestExample(t *testing.T) {
	j, err := Parse("example.yaml", []byte(Example))
	if err != nil {
		t.Fatal(err)
	}
	if j.Steps[0].Timeout != 30*time.Minute || !j.Steps[0].SavePoint || j.Steps[1].Recover[0] != "ledger" || j.KeepBackups != 5 {
		t.Errorf("the example reads as %+v", j)
	}
	// The example claims to show every key.
	for _, key := range []string{
		"name", "repository", "passphrase_file", "passphrase_command", "identity_files", "volumes", "steps", "on_failure", "keep_backups", "logs", "mount", "fstype",
		"options", "spare", "run", "user", "env", "workdir", "timeout", "save_point", "retries", "recover",
	} {
		if !strings.Contains(Example, key+":") {
			t.Errorf("the example does not show %q", key)
		}
	}
}

// TestMistakesDoNotQuoteVariables: a mistake in a secret is told without it.
func TestMistakesDoNotQuoteVariables(t *testing.T) {
	mistakes := 0
	for _, value := range []string{`[hush]`, `{hush: 1}`, `&a hush`, `*hush`, `!!binary hush`, `"hush\0"`, `"hush`, `hush: hush`, `'hush' hush`, `@hush`, "|\n      hush\n     hush\n   hush"} {
		text := "name: j\nrepository: /r\nvolumes: [{name: a}]\nsteps:\n  - name: s\n    run: x\n    env:\n      PASSWORD: " + value + "\n"
		_, err := Parse("job.yaml", []byte(text))
		if err == nil {
			continue // not a mistake to YAML
		}
		mistakes++
		if strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", value, err)
		}
	}
	if mistakes < 7 {
		t.Errorf("only %d of the texts are mistakes", mistakes)
	}
}

// TestMistakesDoNotQuoteArguments: an argument can be a secret as well, and one of
// digits is easily written without quotes.
func TestMistakesDoNotQuoteArguments(t *testing.T) {
	for _, run := range []string{"[login, -p, 48151623]", "48151623", "[login, 4815.1623]", "[login, true, -p, 0x48151623]", "[login, {-p: 48151623}]", "[login, [48151623]]", `[login, "48151623`} {
		_, err := Parse("job.yaml", []byte("name: j\nrepository: /r\nvolumes: [{name: a}]\nsteps:\n  - name: s\n    run: "+run+"\n"))
		if err == nil {
			t.Errorf("%s is taken", run)
		} else if strings.Contains(err.Error(), "4815") || strings.Contains(err.Error(), `"true"`) {
			t.Errorf("%s: %v", run, err)
		}
	}
}

// TestFileOfSomebodyElse: root runs no job that another user can write, as cron
// does not: whoever writes the file says what root does.
func TestFileOfSomebodyElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root's jobs are looked at so")
	}
	for _, c := range []struct {
		mode  os.FileMode
		owner int
		want  string
	}{
		{0o600, 0, ""}, {0o644, 0, ""},
		{0o664, 0, "writable by its group"}, {0o646, 0, "writable by everybody"}, {0o600, 65534, "belongs to user 65534"},
	} {
		path := filepath.Join(t.TempDir(), "job.yaml")
		err := errors.Join(os.WriteFile(path, []byte(Example), 0o600), os.Chmod(path, c.mode), os.Chown(path, c.owner, 0))
		if err != nil {
			t.Fatal(err)
		}
		_, err = Load(path)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("a file %v of user %d: %v, want %q", c.mode, c.owner, err, c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	big := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(big, []byte("# "+strings.Repeat("x", maxFile)), 0o644); err != nil {
		t.Fatal(err)
	}
	var e *Error
	if _, err := Load(big); !errors.As(err, &e) {
		t.Errorf("a large file: %v", err)
	}
	if _, err := Load("testdata/good/small.yaml"); err != nil {
		t.Error(err)
	}
}

// FuzzParse: whatever the text, Parse returns, with a job that keeps its
// promises or with mistakes that lie in the file.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob("testdata/*/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range append(paths, "testdata/example.yaml") {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		j, err := Parse("f", text)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || len(e.Mistakes) == 0 {
				t.Fatalf("an error without mistakes: %v", err)
			}
			return
		}
		if j.Name == "" || j.Repository == "" || len(j.Volumes) == 0 || len(j.Steps) == 0 {
			t.Fatalf("parts are missing: %+v", j)
		}
		saved := false
		for _, s := range j.Steps {
			saved = saved || s.SavePoint
			if s.Name == "" || (s.Run.Shell == "") == (len(s.Run.Argv) == 0) || len(s.Recover) == 0 || s.Timeout < 0 {
				t.Fatalf("a step is not whole: %+v", s)
			}
			if s.Retries > 0 && !saved {
				t.Fatalf("retries without a save point: %+v", s)
			}
			for _, name := range s.Recover {
				if !slices.Contains(j.VolumeNames(), name) {
					t.Fatalf("recovers %q, which is no volume", name)
				}
			}
		}
	})
}
