package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/backup"
)

func TestForget(t *testing.T) {
	c, _ := withRepo(t)
	var ids []string
	for _, args := range [][]string{{"--tag", "release"}, {}, {}} {
		ids = append(ids, result[backupResult](t, c.must(t, append([]string{"backup", "create", "log", "--json"}, args...)...)).ID)
	}
	left := func() (list []backup.Backup) {
		t.Helper()
		if err := json.Unmarshal([]byte(c.must(t, "backup", "list", "--json")), &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	if _, errOut, code := c.run("backup", "forget", "--yes"); code != exitUsage || !strings.Contains(errOut, "--keep-last") {
		t.Errorf("without a rule: exit code %d, %s", code, errOut)
	}
	if _, errOut, code := c.run("backup", "forget", "--keep-within", "3w"); code != exitUsage || !strings.Contains(errOut, "1y6m") {
		t.Errorf("a bad span: exit code %d, %s", code, errOut)
	}
	if _, errOut, code := c.run("backup", "forget", "--keep-last", "1"); code != exitUsage || !strings.Contains(errOut, ids[0]) {
		t.Errorf("unconfirmed: exit code %d, %s", code, errOut)
	}
	out := c.must(t, "backup", "forget", "--keep-last", "1", "--keep-tag", "release", "--dry-run")
	if !strings.Contains(out, "1 backup would be deleted, 2 kept") || !strings.Contains(out, "tag release") {
		t.Errorf("dry run:\n%s", out)
	}
	if n := len(left()); n != 3 {
		t.Errorf("%d backups after a dry run", n)
	}
	if out := c.must(t, "backup", "forget", "--keep-last", "1", "--tag", "nothing", "--yes"); !strings.Contains(out, "nothing to delete") {
		t.Errorf("other tags:\n%s", out)
	}
	var f forgotten
	if err := json.Unmarshal([]byte(c.must(t, "backup", "forget", "--keep-last", "1", "--keep-tag", "release", "--yes", "--json")), &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Keep) != 2 || len(f.Forget) != 1 || f.Forget[0].ID != ids[1] || f.DryRun {
		t.Errorf("result: %+v", f)
	}
	if list := left(); len(list) != 2 || list[0].ID != ids[0] || list[1].ID != ids[2] {
		t.Errorf("left: %+v", list)
	}
}

// A repository with a passphrase, from its making to another key.
func TestEncryptedRepository(t *testing.T) {
	c, content := withRepo(t)
	dir := t.TempDir()
	secret := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c.env[RepoEnv] = filepath.Join(dir, "sealed")
	if _, errOut, code := c.run("repo", "init", "--encrypt"); code != exitUsage || !strings.Contains(errOut, "--passphrase-file") {
		t.Errorf("no passphrase: exit code %d, %s", code, errOut)
	}
	first := secret("first", "correct horse\n")
	if out := c.must(t, "repo", "init", "--passphrase-file", first); !strings.Contains(out, "encrypted repository") {
		t.Errorf("init says %q", out)
	}
	if _, errOut, code := c.run("backup", "list", "--json"); code != exitFailed || !strings.Contains(errOut, `"code":"secret"`) {
		t.Errorf("without a secret: exit code %d, %s", code, errOut)
	}
	c.env[PassphraseFileEnv] = first
	c.must(t, "backup", "create", "log")
	c.must(t, "repo", "key", "add", "--new-passphrase-file", secret("second", "battery staple"), "--label", "the safe")
	var keys []backup.KeyInfo
	if err := json.Unmarshal([]byte(c.must(t, "repo", "key", "list", "--json")), &keys); err != nil || len(keys) != 2 || keys[1].Label != "the safe" {
		t.Fatalf("keys: %+v, %v", keys, err)
	}
	if _, errOut, code := c.run("repo", "key", "remove", keys[0].ID); code != exitUsage || !strings.Contains(errOut, "--yes") {
		t.Errorf("unconfirmed: exit code %d, %s", code, errOut)
	}
	c.must(t, "repo", "key", "remove", keys[0].ID, "--yes")
	if _, errOut, code := c.run("backup", "list"); code != exitFailed || !strings.Contains(errOut, "does not open it") {
		t.Errorf("with a removed key: exit code %d, %s", code, errOut)
	}
	image := filepath.Join(dir, "image")
	c.must(t, "backup", "restore", "latest", "--to-file", image, "--passphrase-command", "cat "+filepath.Join(dir, "second"))
	expectContent(t, image, content)
	if out := c.must(t, "repo", "key", "list", "--passphrase-file", filepath.Join(dir, "second")); !strings.Contains(out, "the safe") {
		t.Errorf("list:\n%s", out)
	}
}
