package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// module makes a module with one package and its targets, and goes there.
func module(t *testing.T, tests string) options {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":         "module example.com/m\n\ngo 1.26\n",
		"p/p.go":         "package p\n",
		"p/p_test.go":    "package p\n\nimport \"testing\"\n\n" + tests,
		"none/x_test.go": "package none\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	return options{time: "50x", jobs: 1, run: regexp.MustCompile(""), dir: "build/fuzz", plain: true, patience: time.Hour}
}

const good = `
func FuzzGood(f *testing.F) {
	f.Add("x")
	f.Fuzz(func(t *testing.T, s string) {})
}
`

func TestGoodTargetPasses(t *testing.T) {
	o := module(t, good)
	if failed, err := fuzz(t.Context(), o); failed != 0 || err != nil {
		t.Errorf("%d failed, %v", failed, err)
	}
	o.run = regexp.MustCompile("Nobody")
	if _, err := fuzz(t.Context(), o); err == nil {
		t.Error("no target was run, and that is no error")
	}
}

// The input that a target fails on lies where it is committed.
func TestCrasherIsKept(t *testing.T) {
	for name, body := range map[string]string{
		"failure": `if len(s) != 2 { t.Error("not two") }`,
		"panic":   `_ = s[1]`,
	} {
		t.Run(name, func(t *testing.T) {
			o := module(t, good+`
func FuzzBad(f *testing.F) {
	f.Add("ab")
	f.Fuzz(func(t *testing.T, s string) { `+body+` })
}
`)
			o.time = "100000x"
			o.run = regexp.MustCompile("Bad")
			if failed, err := fuzz(t.Context(), o); failed != 1 || err != nil {
				t.Errorf("%d failed, %v", failed, err)
			}
			if kept, _ := filepath.Glob("p/testdata/fuzz/FuzzBad/*"); len(kept) != 1 {
				t.Errorf("kept are %q", kept)
			}
		})
	}
}

// A target that never comes back is ended, and its input is kept.
func TestHangingTargetFails(t *testing.T) {
	o := module(t, `
func FuzzHang(f *testing.F) {
	f.Add("ab")
	f.Fuzz(func(t *testing.T, s string) {
		for len(s) != 2 {
			select {}
		}
	})
}
`)
	o.time, o.patience = "1h", time.Second
	if failed, err := fuzz(t.Context(), o); failed != 1 || err != nil {
		t.Errorf("%d failed, %v", failed, err)
	}
	if kept, _ := filepath.Glob("p/testdata/fuzz/FuzzHang/*"); len(kept) != 1 {
		t.Errorf("kept are %q", kept)
	}
}

func TestBrokenPackageFails(t *testing.T) {
	o := module(t, good+"\nvar x int = \"\"\n")
	if failed, err := fuzz(t.Context(), o); failed != 1 || err != nil {
		t.Errorf("%d failed, %v", failed, err)
	}
}

func TestTargets(t *testing.T) {
	o := module(t, good+`
func FuzzNot(t *testing.T)     {}
func FuzzNeither()             {}
func (x) FuzzNorThis(f *testing.F) {}
func Fuzz_2(f *testing.F)      {}
func Fuzzy(f *testing.F)       {}
type x int
`)
	pkgs, err := find(t.Context(), o)
	if err != nil || len(pkgs) != 1 || pkgs[0].name() != "p" || !slices.Equal(pkgs[0].targets, []string{"FuzzGood", "Fuzz_2"}) {
		t.Errorf("got %+v, %v", pkgs, err)
	}
}

// A run of seconds finds little that the committed inputs don't lead to: every
// target of this module has some, and none is left of a target that has gone.
func TestEveryTargetHasACorpus(t *testing.T) {
	t.Chdir("../..")
	pkgs, err := find(t.Context(), options{run: regexp.MustCompile("")})
	if err != nil || len(pkgs) == 0 {
		t.Fatalf("%d packages with targets, %v", len(pkgs), err)
	}
	have := map[string]bool{}
	for _, p := range pkgs {
		for _, target := range p.targets {
			dir := filepath.Join(p.name(), "testdata/fuzz", target)
			have[dir] = true
			if inputs, err := os.ReadDir(dir); err != nil || len(inputs) == 0 {
				t.Errorf("%s of %s has no committed corpus: put some inputs into %s (make fuzz finds more, and keeps them in build/fuzz/cache)", target, p.name(), dir)
			}
		}
	}
	err = filepath.WalkDir(".", func(path string, e os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !e.IsDir():
			return nil
		case path == "build" || path == ".git":
			return filepath.SkipDir
		case strings.HasSuffix(filepath.Dir(path), "testdata/fuzz") && !have[path]:
			t.Errorf("%s is the corpus of no target", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCutShort(t *testing.T) {
	over := "fuzz: elapsed: 10s, execs: 5 (1/sec), new interesting: 0 (total: 3)\n--- FAIL: FuzzX (10.02s)\n    context deadline exceeded\nFAIL\n"
	if !cutShort(over) {
		t.Error("the end of the time is taken for a failure")
	}
	if cutShort(strings.Replace(over, "FAIL\n", "Failing input written to testdata/fuzz/FuzzX/1\n", 1)) {
		t.Error("a failure is passed over")
	}
}
