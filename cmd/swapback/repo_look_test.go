package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRepoStats(t *testing.T) {
	c, content := withRepo(t)
	c.must(t, "backup", "create", "log")
	c.must(t, "backup", "create", "log")
	var st statsJSON
	if err := json.Unmarshal([]byte(c.must(t, "repo", "stats", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	if st.Backups != 2 || st.Total.Size != 2*int64(len(content)) || st.Total.Data != 2<<20 || st.Total.Distinct != 1<<20 || st.DedupRatio != 2 || st.CompressionRatio > 1 {
		t.Errorf("stats: %+v", st)
	}
	out := c.must(t, "repo", "stats")
	for _, want := range []string{st.Repository, "1.0 MiB: 1 chunk", "tank/log  2        8 MiB  2 MiB"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}

func TestRepoCheck(t *testing.T) {
	c, _ := withRepo(t)
	c.must(t, "backup", "create", "log")
	if out := c.must(t, "repo", "check"); !strings.Contains(out, "all good") || !strings.Contains(out, "1 backup") {
		t.Errorf("check:\n%s", out)
	}
	lease := filepath.Join(c.env[RepoEnv], "leases", "dead")
	if err := os.WriteFile(lease, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := c.must(t, "repo", "check"); !strings.Contains(out, "leases/dead") || !strings.Contains(out, "repo prune") {
		t.Errorf("with a dead lease:\n%s", out)
	}
	packs, err := filepath.Glob(filepath.Join(c.env[RepoEnv], "packs", "*", "*"))
	if err != nil || len(packs) != 2 {
		t.Fatalf("%v, %v", packs, err)
	}
	if err := os.Truncate(packs[0], 100); err != nil {
		t.Fatal(err)
	}
	out, errOut, code := c.run("repo", "check", "--json")
	var rep checkJSON
	if err := json.Unmarshal([]byte(out), &rep); err != nil || rep.OK || len(rep.Problems) == 0 || code != exitFailed {
		t.Errorf("exit code %d, %v, %+v", code, err, rep)
	}
	var e errorJSON
	if err := json.Unmarshal([]byte(errOut), &e); err != nil || e.Code != codeProblems {
		t.Errorf("stderr: %v, %s", err, errOut)
	}
	if out, errOut, code := c.run("repo", "check"); code != exitFailed || errOut != "" || !strings.Contains(out, "DAMAGED  packs/") || !strings.Contains(out, "repo heal") {
		t.Errorf("exit code %d, %s:\n%s", code, errOut, out)
	}
}
