package hosttools

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMissing(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"swapback-test-there": 0o755, "swapback-test-no-program": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	got := Missing([]Tool{
		{Program: "swapback-test-there", Package: "a"},
		{Program: "swapback-test-no-program", Package: "b"},
		{Program: "swapback-test-absent", Package: "c"},
	}, dir)
	if len(got) != 2 || got[0].Package != "b" || got[1].Package != "c" {
		t.Errorf("got %v", got)
	}
}

func TestEnsureNamesTheCommand(t *testing.T) {
	// Without apt-get on the path nothing is ever installed.
	t.Setenv("PATH", t.TempDir())
	var notices []string
	notice := func(format string, args ...any) { notices = append(notices, strings.TrimSpace(format)) }
	needed := []Tool{
		{Program: "swapback-test-1", Package: "pkg-a", For: "this"},
		{Program: "swapback-test-2", Package: "pkg-a", For: "that"},
		{Program: "swapback-test-3", Package: "pkg-b", For: "more", Guest: true},
	}
	err := Ensure(context.Background(), needed, notice)
	if err == nil || !strings.Contains(err.Error(), "apt-get install --no-install-recommends pkg-a pkg-b") {
		t.Errorf("got %v", err)
	}
	if err := Ensure(context.Background(), needed[2:], notice); err != nil || len(notices) != 1 {
		t.Errorf("a tool for the guest only: %v, notices %v", err, notices)
	}
}
