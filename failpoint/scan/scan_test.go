package scan

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTree(t *testing.T) {
	for _, tt := range []struct{ name, body, want string }{
		{"two", `failpoint.Hit("b: two"); if true { failpoint.Hit("a: one") }`, "a: one, b: two"},
		{"twice", `failpoint.Hit("a: one"); failpoint.Hit("a: one")`, `error: "a: one" is at`},
		{"no constant", `failpoint.Hit(name)`, "error: string constant"},
		{"no form", `failpoint.Hit("one")`, "error: not of the form"},
		{"another Hit", `target.Hit("one")`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			src := "package x\n\nfunc f() { " + tt.body + " }\n"
			for _, name := range []string{"x.go", "x_test.go", "build/x.go"} {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(src), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			list, err := Tree(dir)
			if want, ok := strings.CutPrefix(tt.want, "error: "); ok {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, %v", list, err)
				}
				return
			}
			var names []string
			for _, p := range list {
				names = append(names, p.Name)
				if p.File != "x.go" || p.Line != 3 {
					t.Errorf("%+v is not where it was written", p)
				}
			}
			if got := strings.Join(names, ", "); err != nil || got != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}
