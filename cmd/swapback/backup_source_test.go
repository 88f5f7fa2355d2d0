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
