package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
)

// A file that is there is written over only by a flag that says so; with --delta
// only where it differs.
func TestRestoreToFile(t *testing.T) {
	c, content := withRepo(t)
	c.must(t, "backup", "create", "log")
	image := filepath.Join(t.TempDir(), "image")
	stale := bytes.Repeat([]byte{0xd1}, len(content))
	if err := os.WriteFile(image, stale, 0o600); err != nil {
		t.Fatal(err)
	}
	_, errOut, code := c.run("backup", "restore", "latest", "--to-file", image)
	if code != exitFailed || !strings.Contains(errOut, "--overwrite") || !strings.Contains(errOut, "--delta") {
		t.Errorf("exit code %d, %s", code, errOut)
	}
	expectContent(t, image, stale)
	c.must(t, "backup", "restore", "latest", "--to-file", image, "--overwrite", "--verify")
	expectContent(t, image, content)

	changed := bytes.Clone(content)
	changed[5] = 1
	changed[3<<19] ^= 1
	if err := os.WriteFile(image, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	r := result[restoreResult](t, c.must(t, "backup", "restore", "latest", "--to-file", image, "--delta", "--json"))
	if r.DataBytes != 64<<10 || r.ZeroBytes != 64<<10 || r.UnchangedBytes != int64(len(content))-128<<10 {
		t.Errorf("result: %+v", r)
	}
	expectContent(t, image, content)
	if out := c.must(t, "backup", "restore", "latest", "--to-file", image, "--delta"); !strings.Contains(out, "4 MiB unchanged") {
		t.Errorf("output:\n%s", out)
	}

	fresh := filepath.Join(t.TempDir(), "fresh")
	c.must(t, "backup", "restore", "latest", "--to-file", fresh, "--delta")
	expectContent(t, fresh, content)

	if err := os.Truncate(image, int64(len(content))+5); err != nil {
		t.Fatal(err)
	}
	_, errOut, code = c.run("backup", "restore", "latest", "--to-file", image, "--delta")
	if code != exitFailed || !strings.Contains(errOut, "larger") {
		t.Errorf("exit code %d, %s", code, errOut)
	}
	c.must(t, "backup", "restore", "latest", "--to-file", image, "--delta", "--allow-larger")
	expectContent(t, image, append(bytes.Clone(content), make([]byte, 5)...))
}

func TestRestoreTargetsOfTheWrongKind(t *testing.T) {
	c, content := withRepo(t)
	c.must(t, "backup", "create", "log")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"--to-file /dev/null --overwrite", exitUsage, "--to-device"},
		{"--to-device " + file + " --yes", exitUsage, "--to-file"},
		{"--to-device /dev/null --yes", exitUsage, "not a block device"},
		{"--to-device /dev/no-such-device --yes", exitNotFound, "no device"},
		{"--to-file " + t.TempDir() + " --overwrite", exitFailed, "regular file"},
	} {
		_, errOut, code := c.run(append([]string{"backup", "restore", "latest"}, strings.Fields(tc.args)...)...)
		if code != tc.code || !strings.Contains(errOut, tc.want) {
			t.Errorf("%s: exit code %d, %s", tc.args, code, errOut)
		}
	}
	if _, err := os.Stat("/dev/no-such-device"); err == nil {
		t.Error("a file was made below /dev")
	}
}

// loseChunks damages the packs of a repository and returns what puts them back.
func loseChunks(t *testing.T, repo string) (mend func()) {
	t.Helper()
	good := map[string][]byte{}
	err := filepath.WalkDir(filepath.Join(repo, "packs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) < 64<<10 { // the table's
			return err
		}
		good[path] = b
		return os.WriteFile(path, b[:len(b)/2], 0o600)
	})
	if err != nil || len(good) == 0 {
		t.Fatalf("%d packs are damaged, %v", len(good), err)
	}
	return func() {
		for path, b := range good {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What is damaged is listed, for people and for programs; the exit code tells it
// from success and from failure; the rest is there; and once the repository is
// mended, --delta fills in what is missing.
func TestRestoreAroundDamage(t *testing.T) {
	c, content := withRepo(t)
	c.must(t, "backup", "create", "log")
	mend := loseChunks(t, c.env[RepoEnv])
	before := len(c.svc.created)
	image := filepath.Join(t.TempDir(), "image")
	out, errOut, code := c.run("backup", "restore", "latest", "--to-file", image, "--json")
	r := result[restoreResult](t, out)
	if code != exitPartial || len(r.Bad) == 0 || r.MissingBytes == 0 || r.DataBytes+r.ZeroBytes+r.MissingBytes != int64(len(content)) {
		t.Fatalf("exit code %d, %+v\n%s", code, r, errOut)
	}
	var e errorJSON
	if err := json.Unmarshal([]byte(errOut), &e); err != nil || e.Code != codeDamaged || !strings.Contains(e.Remedy, "--delta") {
		t.Errorf("%v: %s", err, errOut)
	}
	want := bytes.Clone(content)
	for _, b := range r.Bad {
		clear(want[b.Offset:][:b.Length])
	}
	expectContent(t, image, want)

	device := c.svc.devices["log"]
	out, errOut, code = c.run("backup", "restore", "latest", "--onto", "log", "--yes")
	for _, s := range []string{"MISSING", "read as zeroes", "FROM", r.Bad[0].Object} {
		if !strings.Contains(out, s) {
			t.Errorf("output does not say %q:\n%s", s, out)
		}
	}
	if code != exitPartial || !strings.Contains(errOut, "can't be read back") {
		t.Errorf("exit code %d\n%s", code, errOut)
	}
	expectContent(t, device, want)
	recorded := func() bool {
		return slices.Contains(c.svc.created[before:], any(api.DescendsRequest{Backup: r.Backup, Generation: 1}))
	}
	if recorded() {
		t.Error("the volume counts as descending from a backup that it does not hold")
	}

	if _, errOut, code = c.run("backup", "restore", "latest", "--to-file", image+"2", "--stop-at-damage", "--json"); code != exitFailed {
		t.Errorf("exit code %d\n%s", code, errOut)
	}
	if err := json.Unmarshal([]byte(errOut), &e); err != nil || e.Code != codeDamaged || !strings.Contains(e.Message, "stopped") {
		t.Errorf("%v: %s", err, errOut)
	}

	mend()
	r = result[restoreResult](t, c.must(t, "backup", "restore", "latest", "--to-file", image, "--delta", "--json", "--verify"))
	if r.DataBytes == 0 || r.DataBytes > 1<<20 || !r.Verified {
		t.Errorf("%+v", r)
	}
	expectContent(t, image, content)
	c.must(t, "backup", "restore", "latest", "--onto", "log", "--delta", "--yes")
	expectContent(t, device, content)
	if !recorded() {
		t.Error("the volume does not count as descending from the backup that it holds")
	}
}

// A restore that ends half-way says what the target is now, and how to go on.
func TestIncompleteRestoreSaysHowToGoOn(t *testing.T) {
	c, content := withRepo(t)
	for i := range content[2<<20 : 4<<20] {
		content[2<<20+i] = byte(i>>16) | 1 // data, other than the chunks before
	}
	if err := os.WriteFile(c.svc.snapshot, content, 0o600); err != nil {
		t.Fatal(err)
	}
	c.must(t, "backup", "create", "log")
	mend := loseChunks(t, c.env[RepoEnv])
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, bytes.Repeat([]byte{0xd1}, len(content)), 0o600); err != nil {
		t.Fatal(err)
	}
	// The zeroes at the beginning are one task, written whatever comes after it.
	_, errOut, code := c.run("backup", "restore", "latest", "--to-file", image, "--overwrite", "--stop-at-damage")
	if code != exitFailed {
		t.Fatalf("exit code %d\n%s", code, errOut)
	}
	got, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Contains(errOut, "incomplete image now") && strings.Contains(errOut, "with --delta")
	if written := !bytes.Equal(got, bytes.Repeat([]byte{0xd1}, len(content))); written != said {
		t.Errorf("written is %v, but what was said is\n%s", written, errOut)
	}
	mend()
	c.must(t, "backup", "restore", "latest", "--to-file", image, "--delta")
	expectContent(t, image, content)
}
