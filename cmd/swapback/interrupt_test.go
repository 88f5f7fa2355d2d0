package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program is a command line of a process of its own.
func program(t *testing.T, repo string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), programEnv+"=1", RepoEnv+"="+repo)
	return cmd
}

// Ctrl-C ends a backup at once, the repository is good, and the next backup takes
// what is there.
func TestInterruptedBackupGoesOn(t *testing.T) {
	dir := t.TempDir()
	repo, image := filepath.Join(dir, "repo"), filepath.Join(dir, "image")
	content := make([]byte, 200<<20)
	rand.NewChaCha8([32]byte{6}).Read(content)
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := program(t, repo, "repo", "init").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	create := []string{"backup", "create", "--source", "disk=" + image}
	cmd := program(t, repo, append(create, "--limit", "30MiB")...) // seven seconds
	var text bytes.Buffer
	cmd.Stderr = &text
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stored := func() int {
		packs, err := filepath.Glob(filepath.Join(repo, "packs/*/*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(packs)
	}
	for end := time.Now().Add(time.Minute); stored() < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			t.Fatal("no pack after a minute")
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != exitInterrupted {
		t.Fatalf("the interrupted backup: %v: %s", err, &text)
	}
	if !strings.Contains(text.String(), "goes on from") {
		t.Errorf("it said %s", &text)
	}
	if out, err := program(t, repo, "repo", "check").CombinedOutput(); err != nil {
		t.Errorf("check: %v: %s", err, out)
	}
	if list, err := program(t, repo, "backup", "list", "--json").Output(); err != nil || strings.TrimSpace(string(list)) != "[]" {
		t.Errorf("backups: %s, %v", list, err)
	}
	if out, err := program(t, repo, "repo", "prune").CombinedOutput(); err != nil || stored() < 2 {
		t.Errorf("prune: %v: %s", err, out)
	}

	stream, err := program(t, repo, append(create, "--no-throttle", "--json")...).Output()
	if err != nil {
		t.Fatal(err)
	}
	if v := result[backupResult](t, string(stream)).Volumes[0]; v.ReusedBytes < 60<<20 || v.StoredBytes > 145<<20 {
		t.Errorf("used again %d, stored %d", v.ReusedBytes, v.StoredBytes)
	}
	// The last report has all the counts.
	lines := strings.Split(strings.TrimSpace(string(stream)), "\n")
	var last progressEvent
	if err := json.Unmarshal([]byte(lines[len(lines)-2]), &last); err != nil {
		t.Fatal(err)
	}
	if last.Done != int64(len(content)) || last.Changed+last.Reused != last.Done || last.Reused == 0 || last.Stored < last.Changed {
		t.Errorf("last report: %+v", last)
	}
	back := filepath.Join(dir, "back")
	if out, err := program(t, repo, "backup", "restore", "latest", "--to-file", back).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	expectContent(t, back, content)
	if out, err := program(t, repo, "backup", "verify", "--all").CombinedOutput(); err != nil {
		t.Errorf("verify: %v: %s", err, out)
	}
}
