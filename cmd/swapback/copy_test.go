package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/backup"
)

func TestCopy(t *testing.T) {
	c, content := withRepo(t)
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "to")
	c.must(t, "repo", "init", to, "--passphrase-file", secret, "--chunk-size", "64K")
	first := result[backupResult](t, c.must(t, "backup", "create", "log", "--tag", "release", "--json"))
	content[3<<20] = 1
	if err := os.WriteFile(c.svc.snapshot, content, 0o600); err != nil {
		t.Fatal(err)
	}
	second := result[backupResult](t, c.must(t, "backup", "create", "log", "--json"))

	for args, want := range map[string]string{
		"backup copy --all":                "--to REPO",
		"backup copy --to x":               "name them",
		"backup copy latest --all --to x":  "name them",
		"backup copy --to x --tag a b":     "name them",
		"backup copy latest --to /nowhere": "repo init",
	} {
		if _, errOut, code := c.run(strings.Fields(args)...); code == exitOK || !strings.Contains(errOut, want) {
			t.Errorf("%s: exit code %d, %s", args, code, errOut)
		}
	}
	if _, errOut, code := c.run("backup", "copy", "--tag", "none", "--to", to, "--to-passphrase-file", secret); code != exitNotFound {
		t.Errorf("no such tag: exit code %d, %s", code, errOut)
	}
	if _, errOut, code := c.run("backup", "copy", "--all", "--to", to, "--json"); code != exitFailed || !strings.Contains(errOut, `"code":"secret"`) {
		t.Errorf("without the secret: exit code %d, %s", code, errOut)
	}

	stream := c.must(t, "backup", "copy", "--tag", "release", "--volume", "tank/log", "--to", to, "--to-passphrase-file", secret, "--json")
	r := result[copyResult](t, stream)
	for _, want := range []string{`"type":"progress","phase":"copy"`, `"type":"copied","backup":"` + first.ID} {
		if !strings.Contains(stream, want) {
			t.Errorf("the stream lacks %s:\n%s", want, stream)
		}
	}
	if len(r.Copied) != 1 || r.Copied[0].CopiedFrom.Backup != first.ID || len(r.Skipped) != 0 {
		t.Errorf("by tag: %+v", r)
	}
	out := c.must(t, "backup", "copy", "--all", "--to", to, "--to-passphrase-file", secret)
	if !strings.Contains(out, second.ID+" is ") || !strings.Contains(out, "1 backup copied to "+to) || !strings.Contains(out, "1 there already") {
		t.Errorf("all:\n%s", out)
	}
	if r := result[copyResult](t, c.must(t, "backup", "copy", "latest", "--to", to, "--to-passphrase-file", secret, "--json")); len(r.Copied) != 0 || len(r.Skipped) != 1 {
		t.Errorf("again: %+v", r)
	}

	c.env[RepoEnv], c.env[PassphraseFileEnv] = to, secret
	var list []backup.Backup
	if err := json.Unmarshal([]byte(c.must(t, "backup", "list", "--json")), &list); err != nil || len(list) != 2 || list[1].Volumes[0].ReadBytes != 1<<20 {
		t.Errorf("copies: %+v, %v", list, err)
	}
	if out := c.must(t, "backup", "show", "latest"); !strings.Contains(out, second.ID) {
		t.Errorf("show:\n%s", out)
	}
	image := filepath.Join(dir, "image")
	c.must(t, "backup", "restore", "latest", "--to-file", image)
	expectContent(t, image, content)
	c.must(t, "backup", "verify", "--all")

	// To a repository that is not encrypted one has to say so.
	open := filepath.Join(dir, "open")
	delete(c.env, PassphraseFileEnv)
	c.must(t, "repo", "init", open)
	c.env[PassphraseFileEnv] = secret
	if _, errOut, code := c.run("backup", "copy", "--all", "--to", open); code != exitFailed || !strings.Contains(errOut, "--to-unencrypted") {
		t.Errorf("unsaid: exit code %d, %s", code, errOut)
	}
	c.must(t, "backup", "copy", "--all", "--to", open, "--to-unencrypted")
}
