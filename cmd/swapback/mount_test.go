package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/ublk"
)

func TestBackupMountArguments(t *testing.T) {
	c, _ := withRepo(t)
	for _, args := range [][]string{
		{}, {"latest", "db", "log"}, {"latest", "--device", "-2"}, {"latest", "--device", "70000"},
		{"latest", "--cache", "-1"}, {"latest", "--cache", "1MB"}, {"latest", "--read-ahead", "x"},
	} {
		if _, errOut, code := c.run(append([]string{"backup", "mount"}, args...)...); code != exitUsage {
			t.Errorf("%q: exit code %d, %s", args, code, errOut)
		}
	}
}

func TestMountErrors(t *testing.T) {
	for _, c := range []struct {
		err    error
		remedy string
		exit   int
	}{
		{ublk.ErrNoDriver, "modprobe ublk_drv", exitFailed},
		{&fs.PathError{Op: "open", Path: "/dev/ublk-control", Err: fs.ErrPermission}, "run it as root", exitFailed},
		{taken(7), "leave --device out", exitInUse},
	} {
		e, exit := classify(t.Context(), mountError(c.err))
		if exit != c.exit || !strings.Contains(e.Remedy, c.remedy) || e.Message == "" {
			t.Errorf("%v: exit code %d, %+v", c.err, exit, e)
		}
	}
	other := errors.New("other")
	if mountError(other) != other {
		t.Error("another error was changed")
	}
}

// A mark is its owner's while he lives; one that was left over is taken over.
func TestDeviceMarks(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	m, err := markDevice(dir, 7)
	if err != nil || m == nil {
		t.Fatal(m, err)
	}
	path := filepath.Join(dir, "quarantine", "ublkb7")
	if markPath(dir, 7) != path || m.path != path {
		t.Errorf("the mark is %s", m.path)
	}
	if again, err := markDevice(dir, 7); again != nil || err != nil {
		t.Errorf("taken twice: %v, %v", again, err)
	}
	if removed, err := removeLeftMark(path); removed || err != nil {
		t.Errorf("removed while its owner lives: %v, %v", removed, err)
	}
	if left := entries(t, filepath.Dir(path)); len(left) != 1 {
		t.Errorf("folder has %v", left)
	}
	m.file.Close() // as when its owner dies
	if m, err = markDevice(dir, 7); err != nil || m == nil {
		t.Fatalf("one that is left over: %v, %v", m, err)
	}
	m.remove(log)
	if left := entries(t, filepath.Dir(path)); len(left) != 0 {
		t.Errorf("folder has %v", left)
	}
	if removed, err := removeLeftMark(path); !removed || err != nil {
		t.Errorf("one that is not there: %v, %v", removed, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := markDevice(file, 1); m != nil || err == nil {
		t.Errorf("in a file: %v, %v", m, err)
	}
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestHolderLines(t *testing.T) {
	got := holderLines([]api.Holder{{Device: "/dev/ublkb1", Detail: "mounted on /mnt (xfs)"}, {Device: "/dev/ublkb1p1", Detail: "x"}})
	if got != "  /dev/ublkb1: mounted on /mnt (xfs)\n  /dev/ublkb1p1: x\n" {
		t.Errorf("%q", got)
	}
}
