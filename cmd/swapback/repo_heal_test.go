package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// breakData flips bits in every pack of chunks of a repository that has only one.
func breakData(t *testing.T, repo string) {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(repo, "packs", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("%v, %v", packs, err)
	}
	for _, path := range packs {
		p, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if p[10] != 1 { // of nodes
			continue
		}
		p[len(p)/2] ^= 1
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What is damaged comes back from the volume, when the daemon is asked for it.
func TestRepoHeal(t *testing.T) {
	c, content := withRepo(t)
	c.must(t, "backup", "create", "log")
	if out := c.must(t, "repo", "heal"); !strings.Contains(out, "all good") {
		t.Errorf("good:\n%s", out)
	}
	breakData(t, c.env[RepoEnv])

	// The volume has other data now.
	device := c.svc.devices["log"]
	out, errOut, code := c.run("repo", "heal")
	if code != exitFailed || errOut != "" || !strings.Contains(out, "DAMAGED  heal volume tank/log") || !strings.Contains(out, "1 part damaged, 0 put back") {
		t.Errorf("exit code %d, %s:\n%s", code, errOut, out)
	}
	if err := os.WriteFile(device, content, 0o600); err != nil {
		t.Fatal(err)
	}
	c.svc.volumes[2].Device = device
	if out := c.must(t, "repo", "heal", "--dry-run"); !strings.Contains(out, "1 could be put back") {
		t.Errorf("dry run:\n%s", out)
	}
	if _, _, code := c.run("repo", "heal", "--no-volumes"); code != exitFailed {
		t.Errorf("without volumes: exit code %d", code)
	}
	if h := result[healResult](t, c.must(t, "repo", "heal", "--json")); !h.OK || h.Healed.Chunks != 1 || h.Sources[device] != 1 || len(h.Changed) != 1 {
		t.Errorf("heal: %+v", h)
	}
	c.must(t, "backup", "verify", "--all")
	c.must(t, "repo", "prune")
	if out := c.must(t, "repo", "check"); strings.Contains(out, "note") {
		t.Errorf("check:\n%s", out)
	}
}

// Without a daemon there are images and other repositories.
func TestRepoHealFrom(t *testing.T) {
	c, content := withRepo(t)
	c.must(t, "backup", "create", "log")
	repo, dir := c.env[RepoEnv], t.TempDir()
	other := filepath.Join(dir, "copy")
	if err := os.CopyFS(other, os.DirFS(repo)); err != nil {
		t.Fatal(err)
	}
	c.socket = filepath.Join(dir, "nobody")
	breakData(t, repo)
	out, _, code := c.run("repo", "heal")
	if code != exitFailed || !strings.Contains(out, "the volumes were not looked at") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if out := c.must(t, "repo", "heal", "--from-repo", other); !strings.Contains(out, "1 from "+other) {
		t.Errorf("from a copy:\n%s", out)
	}
	c.must(t, "backup", "verify", "--all")
	breakData(t, repo)
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, append(make([]byte, 2<<20), content...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, code := c.run("repo", "heal", "--from", image); code != exitFailed {
		t.Errorf("content that has moved: exit code %d", code)
	}
	c.must(t, "repo", "heal", "--from", image, "--scan")
	c.must(t, "backup", "verify", "--all")
	if _, errOut, code := c.run("repo", "heal", "--pack", "x"); code != exitUsage || !strings.Contains(errOut, "packs/AA/ID") {
		t.Errorf("no pack: exit code %d, %s", code, errOut)
	}
	if _, _, code := c.run("repo", "heal", "--from-repo", "/nowhere"); code != exitNotFound {
		t.Errorf("no repository: exit code %d", code)
	}
}
