package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
)

// withRepo returns a command line with a repository, and the content of the
// volume "log", which is a file here: a quarter of it is data, the rest zeroes.
func withRepo(t *testing.T) (*cli, []byte) {
	t.Helper()
	c := newCLI(t)
	dir := t.TempDir()
	content := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{1}).Read(content[1<<20 : 2<<20])
	c.svc.snapshot = filepath.Join(dir, "snapshot")
	if err := os.WriteFile(c.svc.snapshot, content, 0o600); err != nil {
		t.Fatal(err)
	}
	log := &c.svc.volumes[2]
	log.Size = int64(len(content))
	c.svc.devices = map[string]string{"log": filepath.Join(dir, "device")}
	if err := os.WriteFile(c.svc.devices["log"], bytes.Repeat([]byte{0xee}, len(content)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.env[RepoEnv] = filepath.Join(dir, "repo")
	c.must(t, "repo", "init")
	return c, content
}

// must runs a command that has to work and returns what it printed.
func (c *cli) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errOut, code := c.run(args...)
	if code != exitOK {
		t.Fatalf("swapback %s: exit code %d\n%s", strings.Join(args, " "), code, errOut)
	}
	return out
}

// result decodes the last line of a stream, after checking that every line is
// one object with a type.
func result[T any](t *testing.T, stream string) T {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(stream), "\n")
	for i, line := range lines {
		var kind struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal([]byte(line), &kind); err != nil {
			t.Fatalf("line %d: %v: %s", i+1, err, line)
		}
		if last := i == len(lines)-1; (kind.Type == "result") != last {
			t.Errorf("line %d of %d is a %s", i+1, len(lines), kind.Type)
		}
	}
	var v T
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestBackupLifeCycle(t *testing.T) {
	c, content := withRepo(t)

	stream := c.must(t, "backup", "create", "log", "--comment", "before the upgrade", "--tag", "a,b", "--cow-size", "64M", "--json")
	b := result[backupResult](t, stream)
	if b.ID == "" || len(b.Volumes) != 1 || b.Comment != "before the upgrade" || len(b.Tags) != 2 {
		t.Fatalf("result: %+v", b)
	}
	if !strings.Contains(stream, `"type":"progress"`) {
		t.Errorf("no progress in the stream:\n%s", stream)
	}
	if req := c.svc.created[0].(api.SnapshotRequest); req.COWSize != 64<<20 {
		t.Errorf("snapshot request %+v", req)
	}

	if out := c.must(t, "backup", "list"); !strings.Contains(out, b.ID) || !strings.Contains(out, "a,b") {
		t.Errorf("list:\n%s", out)
	}
	for filter, want := range map[string]int{"--tag=a": 1, "--tag=c": 0, "--volume=log": 1, "--volume=tank/log": 1, "--volume=db": 0} {
		var list []backup.Backup
		if err := json.Unmarshal([]byte(c.must(t, "backup", "list", "--json", filter)), &list); err != nil || len(list) != want {
			t.Errorf("list %s: %v, %d backups, want %d", filter, err, len(list), want)
		}
	}
	if out := c.must(t, "backup", "show", "latest"); !strings.Contains(out, b.ID) || !strings.Contains(out, "before the upgrade") {
		t.Errorf("show:\n%s", out)
	}

	image := filepath.Join(t.TempDir(), "image")
	c.must(t, "backup", "restore", "latest", "--to-file", image)
	expectContent(t, image, content)

	device := c.svc.devices["log"]
	if _, errOut, code := c.run("backup", "restore", "latest", "--onto", "log"); code != exitUsage || !strings.Contains(errOut, "--yes") {
		t.Errorf("unconfirmed restore: exit code %d, %s", code, errOut)
	}
	expectContent(t, device, bytes.Repeat([]byte{0xee}, len(content)))
	r := result[restoreResult](t, c.must(t, "backup", "restore", b.ID[:len(b.ID)-2], "--onto", "log", "--yes", "--json"))
	if r.Backup != b.ID || r.DataBytes != 1<<20 {
		t.Errorf("restore: %+v", r)
	}
	expectContent(t, device, content)

	if v := result[verifyResult](t, c.must(t, "backup", "verify", "--all", "--json")); !v.OK || v.Backups != 1 {
		t.Errorf("verify: %+v", v)
	}

	if _, errOut, code := c.run("backup", "delete", "latest"); code != exitUsage || !strings.Contains(errOut, b.ID) {
		t.Errorf("unconfirmed deletion: exit code %d, %s", code, errOut)
	}
	c.must(t, "backup", "delete", "latest", b.ID, "--yes")
	if out := c.must(t, "backup", "list", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("list after the deletion: %s", out)
	}
	c.must(t, "repo", "prune", "--json")
}

func expectContent(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has other content than expected", path)
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	c, _ := withRepo(t)
	c.must(t, "backup", "create", "log")
	damaged := 0
	err := filepath.WalkDir(c.env[RepoEnv], func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.Contains(path, "/packs/") || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := len(b) / 2; i < len(b)/2+64; i++ {
			b[i] ^= 0xff
		}
		damaged++
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		return os.WriteFile(path, b, 0o600)
	})
	if err != nil || damaged == 0 {
		t.Fatalf("damaged %d packs, %v", damaged, err)
	}
	out, errOut, code := c.run("backup", "verify", "--all", "--json")
	if v := result[verifyResult](t, out); v.OK || code != exitFailed {
		t.Errorf("exit code %d, %+v", code, v)
	}
	var e errorJSON
	if err := json.Unmarshal([]byte(errOut), &e); err != nil || e.Code != codeProblems {
		t.Errorf("stderr: %v, %s", err, errOut)
	}
	if out, _, code := c.run("backup", "verify", "--all"); code != exitFailed || !strings.Contains(out, "DAMAGED") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}

func TestBackupErrors(t *testing.T) {
	for _, tc := range []struct {
		name, line, code string
		exit             int
		remedy           string
	}{
		{"no repository there", "backup list --repo /nowhere/repo", api.CodeNotFound, exitNotFound, "repo init"},
		{"unknown backup", "backup show 20200101T000000", api.CodeNotFound, exitNotFound, ""},
		{"unknown volume", "backup create dbb", api.CodeNotFound, exitNotFound, "did you mean db?"},
		{"unknown target", "backup restore latest --onto lgo", api.CodeNotFound, exitNotFound, "did you mean log?"},
		{"target in quarantine", "backup restore latest --onto db-spare --yes", "", 0, ""},
		{"unknown volume in backup", "backup restore latest --volume dbb --to-file /tmp/never-made", api.CodeNotFound, exitNotFound, ""},
		{"size differs", "backup restore latest --onto db --yes", api.CodeInvalid, exitUsage, ""},
		{"repository exists", "repo init", api.CodeExists, exitFailed, ""},
		{"unknown backup to recover", "recover log --from 20200101T000000", api.CodeNotFound, exitNotFound, ""},
		{"latest is another volume's", "recover db --from latest", api.CodeNotFound, exitNotFound, "--from"},
		{"unknown backup to delete", "backup delete 20200101T000000 --yes", api.CodeNotFound, exitNotFound, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, _ := withRepo(t)
			c.must(t, "backup", "create", "log")
			_, errOut, code := c.run(append(strings.Fields(tc.line), "--json")...)
			var e errorJSON
			if err := json.Unmarshal([]byte(errOut), &e); err != nil {
				t.Fatalf("%v: %q", err, errOut)
			}
			if tc.code == "" {
				if code == exitOK {
					t.Errorf("it worked")
				}
				return
			}
			if code != tc.exit || e.Code != tc.code || !strings.Contains(e.Remedy, tc.remedy) {
				t.Errorf("exit code %d, want %d: %+v", code, tc.exit, e)
			}
		})
	}
}

func TestCompletionOffersBackups(t *testing.T) {
	c, _ := withRepo(t)
	b := result[backupResult](t, c.must(t, "backup", "create", "log", "--json"))
	for _, line := range []string{"backup show", "recover log --from", "backup delete x"} {
		out, _, _ := c.run(append([]string{"__complete"}, append(strings.Fields(line), "")...)...)
		if !strings.Contains(out, b.ID) || !strings.Contains(out, "latest") {
			t.Errorf("%s:\n%s", line, out)
		}
	}
}

// What a backup was made against, or why against nothing, is shown.
func TestShowIncremental(t *testing.T) {
	c, content := withRepo(t)
	repo, err := backup.Open(t.Context(), c.env[RepoEnv], backup.Secret{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	take := func(ch *backup.Changes) backup.Backup {
		t.Helper()
		b, err := repo.Create(t.Context(), []backup.Source{{Path: c.svc.snapshot, Volume: backup.VolumeRef{Name: "log", UUID: "u"}, Changes: ch}}, backup.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	full := take(&backup.Changes{Why: "the daemon was killed"})
	if out := c.must(t, "backup", "show", full.ID); !strings.Contains(out, "log: full: the daemon was killed") {
		t.Errorf("full:\n%s", out)
	}
	content[3<<20] = 1
	if err := os.WriteFile(c.svc.snapshot, content, 0o600); err != nil {
		t.Fatal(err)
	}
	incremental := take(&backup.Changes{Base: full.ID, Ranges: []backup.Range{{Offset: 2 << 20, Length: 2 << 20}}})
	if out := c.must(t, "backup", "show", incremental.ID); !strings.Contains(out, "log: incremental on "+full.ID+": 2 MiB read, 1 MiB changed") {
		t.Errorf("incremental:\n%s", out)
	}
	if _, errOut, code := c.run("backup", "create", "log", "--full", "--verify-unchanged"); code != exitUsage || !strings.Contains(errOut, "verify-unchanged") {
		t.Errorf("both: exit code %d, %s", code, errOut)
	}
	if out := c.must(t, "backup", "create", "log", "--full"); strings.Contains(out, "full:") {
		t.Errorf("a full one, of which nobody knows changes:\n%s", out)
	}
}

// A change map that lacks something is found out when that is asked for: the exit
// code says so, and the backup is there.
func TestVerifyUnchanged(t *testing.T) {
	c, content := withRepo(t)
	c.svc.changes = api.Changes{Cut: "1", Why: "nothing is known yet"}
	out := c.must(t, "backup", "create", "log")
	if !strings.Contains(out, "log: full: nothing is known yet") {
		t.Errorf("the first:\n%s", out)
	}
	base := strings.Fields(out)[1]
	empty, err := api.NewChanges(int64(len(content)), 1<<20, make([]uint64, 1))
	if err != nil {
		t.Fatal(err)
	}
	c.svc.changes = empty
	c.svc.changes.Cut, c.svc.changes.Base = "2", base
	if out := c.must(t, "backup", "create", "log", "--verify-unchanged"); !strings.Contains(out, "log: incremental on "+base+": 4 MiB read, 0 B changed") {
		t.Errorf("with a right map:\n%s", out)
	}
	content[3<<20] = 1
	if err := os.WriteFile(c.svc.snapshot, content, 0o600); err != nil {
		t.Fatal(err)
	}
	out, errOut, code := c.run("backup", "create", "log", "--verify-unchanged")
	if code != exitFailed || !strings.Contains(out, "incremental on "+base+": 4 MiB read, 1 MiB changed") || !strings.Contains(errOut, "changes were missed") || !strings.Contains(errOut, "bytes 3145728-4194303") {
		t.Errorf("with a wrong one: exit code %d\n%s\n%s", code, out, errOut)
	}
	out, errOut, code = c.run("backup", "create", "log", "--verify-unchanged", "--json")
	r := result[backupResult](t, out)
	if code != exitFailed || len(r.Missed) != 1 || r.Missed[0].Bytes != 1<<20 || r.ID == "" || !strings.Contains(errOut, codeProblems) {
		t.Errorf("with a wrong one: exit code %d, %+v\n%s", code, r, errOut)
	}
	var list []backup.Backup
	if err := json.Unmarshal([]byte(c.must(t, "backup", "list", "--json")), &list); err != nil || len(list) != 4 {
		t.Errorf("%d backups, %v", len(list), err)
	}
}
