package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file that no daemon serves is backed up and comes back; one that somebody
// writes is not taken unless that is said.
func TestBackupOfSources(t *testing.T) {
	c, _ := withRepo(t)
	c.socket = filepath.Join(t.TempDir(), "nobody")
	content := bytes.Repeat([]byte("image of another machine\n"), 100<<10)
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	b := result[backupResult](t, c.must(t, "backup", "create", "--source", "vm7="+image, "--tag", "import", "--json"))
	if len(b.Volumes) != 1 || b.Volumes[0].Name != "vm7" || b.Volumes[0].Size != int64(len(content)) || b.Tags[0] != "import" {
		t.Errorf("result: %+v", b)
	}
	back := filepath.Join(t.TempDir(), "back")
	c.must(t, "backup", "restore", b.ID, "--to-file", back)
	expectContent(t, back, content)

	writer, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	_, errOut, code := c.run("backup", "create", "--source", "vm7="+image)
	if code != exitInUse || !strings.Contains(errOut, "open for writing") || !strings.Contains(errOut, "--allow-in-use") {
		t.Errorf("a file that is written: exit code %d, %s", code, errOut)
	}
	c.must(t, "backup", "create", "--source", "vm7="+image, "--allow-in-use")

	for _, args := range []string{"", "log --source a=" + image, "--source " + image, "--source =" + image, "--source a="} {
		if _, errOut, code := c.run(append([]string{"backup", "create"}, strings.Fields(args)...)...); code != exitUsage {
			t.Errorf("backup create %s: exit code %d, %s", args, code, errOut)
		}
	}
	if _, errOut, code := c.run("backup", "create", "--source", "a="+image+"-"); code != exitFailed || !strings.Contains(errOut, image+"-") {
		t.Errorf("a file that is not there: exit code %d, %s", code, errOut)
	}
}

// Of a source whose changes are known only these are read.
func TestChangesOfSource(t *testing.T) {
	c, _ := withRepo(t)
	dir := t.TempDir()
	image, list := filepath.Join(dir, "disk.img"), filepath.Join(dir, "changes.json")
	content := bytes.Repeat([]byte("0123456789abcdef"), 4<<16)
	put := func(path string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(image, content)
	create := []string{"backup", "create", "--source", "vm7=" + image, "--json"}
	first := result[backupResult](t, c.must(t, create...))
	copy(content[3<<20+5:], "changed")
	put(image, content)
	put(list, []byte(`{"base":"latest","ranges":[{"offset":3145728,"length":4096}]}`))
	b := result[backupResult](t, c.must(t, append(create, "--changes", list)...))
	if v := b.Volumes[0]; v.Base != first.ID || v.ReadBytes != 1<<20 || v.ChangedBytes != 1<<20 || v.FullBecause != "" {
		t.Errorf("%+v", v)
	}
	back := filepath.Join(dir, "back")
	c.must(t, "backup", "restore", b.ID, "--to-file", back)
	expectContent(t, back, content)

	for text, code := range map[string]int{
		``: exitUsage, `{"ranges":[]}`: exitUsage, `{"base":"latest","bytes":5}`: exitUsage, `{"base":"2020"}`: exitNotFound,
	} {
		put(list, []byte(text))
		if _, errOut, got := c.run(append(create, "--changes", list)...); got != code {
			t.Errorf("changes %s: exit code %d, %s", text, got, errOut)
		}
	}
	if _, errOut, code := c.run(append(create, "--changes", list+"-")...); code != exitUsage {
		t.Errorf("no file: exit code %d, %s", code, errOut)
	}
	if _, errOut, code := c.run(append(create, "--source", "b="+image, "--changes", list)...); code != exitUsage {
		t.Errorf("two sources: exit code %d, %s", code, errOut)
	}
}
