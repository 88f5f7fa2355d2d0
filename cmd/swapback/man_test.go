package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMan(t *testing.T) {
	dir := t.TempDir()
	newCLI(t).must(t, "man", dir)
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(pages) < 30 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, section := range []string{".TH ", ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH EXAMPLES", ".SH EXIT STATUS", ".SH SEE ALSO"} {
			if !strings.Contains(string(b), section) {
				t.Errorf("%s lacks %s", filepath.Base(page), section)
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "swapback-volume-create.1"))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "man-volume-create", strings.SplitAfterN(string(b), "\n", 2)[1]) // without the version
	if _, _, code := newCLI(t).run("man", filepath.Join(dir, "missing")); code != exitFailed {
		t.Errorf("a missing folder: exit code %d", code)
	}
}

func TestRoff(t *testing.T) {
	for in, want := range map[string]string{
		".SH x":    `\&.SH x`,
		"'quoted'": `\&'quoted'`,
		`a\b`:      `a\eb`,
		"--size":   `\-\-size`,
		"x\n.y":    "x\n\\&.y",
	} {
		if got := roff(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
