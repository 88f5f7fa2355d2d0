package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
)

func TestDiff(t *testing.T) {
	c, content := withRepo(t)
	take := func() string {
		t.Helper()
		return result[backupResult](t, c.must(t, "backup", "create", "log", "--json")).ID
	}
	first := take()
	content[3<<20+5] = 1
	if err := os.WriteFile(c.svc.snapshot, content, 0o600); err != nil {
		t.Fatal(err)
	}
	second := take()
	out := c.must(t, "backup", "diff", first, "latest")
	for _, want := range []string{"3145728-4194303  1 MiB", "1 MiB of log differ between " + first + " and " + second + ", in 1 range"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	stream := c.must(t, "backup", "diff", first, second, "--volume", "tank/log", "--json")
	if want := `{"type":"range","offset":3145728,"length":1048576}` + "\n"; !strings.HasPrefix(stream, want) {
		t.Errorf("stream:\n%s", stream)
	}
	if r := result[diffResult](t, stream); r.A != first || r.B != second || r.Bytes != 1<<20 || r.Ranges != 1 {
		t.Errorf("result: %+v", r)
	}
	if out := c.must(t, "backup", "diff", first, first); !strings.Contains(out, "log is the same in") {
		t.Errorf("a backup and itself:\n%s", out)
	}
	if _, errOut, code := c.run("backup", "diff", first, "20200101T000000"); code != exitNotFound {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	if _, errOut, code := c.run("backup", "diff", first, second, "--volume", "db", "--json"); code != exitNotFound || !strings.Contains(errOut, fmt.Sprintf("%q", api.CodeNotFound)) {
		t.Errorf("exit code %d: %s", code, errOut)
	}
}

// People see the first ranges, and how many more there are.
func TestDiffShowsTheFirst(t *testing.T) {
	c, content := withRepo(t)
	c.env[RepoEnv] += "2"
	c.must(t, "repo", "init", "--chunk-size", "64K")
	take := func() string {
		t.Helper()
		return result[backupResult](t, c.must(t, "backup", "create", "log", "--json")).ID
	}
	first := take()
	for i := 0; i < len(content); i += 128 << 10 { // every second chunk
		content[i] ^= 1
	}
	if err := os.WriteFile(c.svc.snapshot, content, 0o600); err != nil {
		t.Fatal(err)
	}
	second := take()
	if out := c.must(t, "backup", "diff", first, second); strings.Count(out, "\n") != diffShown+2 || !strings.Contains(out, "and 12 more ranges; --all") {
		t.Errorf("the first:\n%s", out)
	}
	if out := c.must(t, "backup", "diff", first, second, "--all"); strings.Count(out, "\n") != 32+1 {
		t.Errorf("all:\n%s", out)
	}
}
