package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/ci/internal/qemu"
)

func clearEnv(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"KERNEL", "ACCEL", "DISKS", "DISK_SIZE", "DISK_DIR", "MEM", "CPUS", "CPU", "VM_TIMEOUT", "VM_BOOT_TIMEOUT", "OUT", "ICOUNT", "NATIVE", "QUIET", "VM_ENV", "VM_CMD",
	} {
		t.Setenv(name, "")
	}
}

func TestParse(t *testing.T) {
	clearEnv(t)
	o, err := parse([]string{"--", "exit", "7"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.command != "exit 7" || o.disks != 2 || o.diskSize != "4G" || o.memory != "4G" || o.accel != "auto" || o.timeout != 30*time.Minute {
		t.Errorf("defaults: %+v", o)
	}
	t.Setenv("VM_CMD", "a\n$b 'c'\n")
	t.Setenv("DISKS", "3")
	t.Setenv("CPU", "max,-erms")
	t.Setenv("VM_TIMEOUT", "90")
	t.Setenv("VM_ENV", "DISKS NOT_SET X=1")
	t.Setenv("NATIVE", "1")
	o, err = parse([]string{"-env", "Y=2"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.command != "a\n$b 'c'\n" || o.disks != 3 || o.timeout != 90*time.Second || !o.native || o.cpu != "max,-erms" {
		t.Errorf("from the environment: %+v", o)
	}
	if want := []string{"Y=2", "DISKS=3", "X=1"}; !slices.Equal(o.env, want) {
		t.Errorf("got %v, want %v", o.env, want)
	}
	for _, args := range [][]string{{"-accel", "magic", "--", "x"}, {"-disks", "-1", "--", "x"}, {"-nonsense"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
	t.Setenv("VM_CMD", " ")
	if _, err := parse(nil, io.Discard); err == nil || !strings.Contains(err.Error(), "CMD") {
		t.Errorf("no command: %v", err)
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"4G": 4 << 30, "64m": 64 << 20, "1T": 1 << 40, "512": 512, "1K": 1024} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%s: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "G", "-1G", "0", "1.5G", "99999999999T", "4GB"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("%q was accepted as %d", in, got)
		}
	}
}

func TestAccelsRemember(t *testing.T) {
	a := &accels{file: filepath.Join(t.TempDir(), "accel.json"), host: "this", kvm: true}
	if got, why := a.best(); got != "" || why != "" {
		t.Errorf("nothing is known: %s, %s", got, why)
	}
	a.remember(qemu.TCG, "tried")
	if got, _ := a.best(); got != qemu.TCG {
		t.Errorf("not remembered: %s", got)
	}
	b := *a
	b.host = "another"
	if got, _ := b.best(); got != "" {
		t.Errorf("another host's answer was taken: %s", got)
	}
	b.kvm = false
	if got, why := b.best(); got != qemu.TCG || why == "" {
		t.Errorf("without /dev/kvm: %s, %s", got, why)
	}
}

func TestWork(t *testing.T) {
	t.Chdir(t.TempDir())
	// A process id that no process can have.
	stale := "build/vm/run-4194999"
	if err := os.MkdirAll(stale, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("bin/program", []byte("v1"), 0o755); err != nil {
		t.Fatal(err)
	}
	w, err := newWork()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Error("the folder of a dead run is still there")
	}
	bin, err := w.keepPrograms("bin")
	if err != nil {
		t.Fatal(err)
	}
	// The compiler removes a program before it writes the new one.
	if err := os.Remove("bin/program"); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(bin, "program")); string(got) != "v1" {
		t.Errorf("the machine's program changed: %q", got)
	}
	var out strings.Builder
	if err := os.WriteFile(w.path("console.log"), []byte(strings.Repeat("line\n", 100)+"Kernel panic\r\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.showConsoles(&out)
	if n := strings.Count(out.String(), "\n"); n != 61 || !strings.HasSuffix(out.String(), "| Kernel panic\n") {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
	complaint := ""
	w.complain(func(string, ...any) { complaint = "yes" })
	if complaint == "" {
		t.Error("a panic in the log went unnoticed")
	}
	if err := w.lockDisks("bin"); err != nil {
		t.Fatal(err)
	}
	if err := new(work).lockDisks("bin"); err == nil {
		t.Error("two machines on the same disks")
	}
	w.remove()
	if _, err := os.Stat(w.dir); !os.IsNotExist(err) {
		t.Error("the run's folder is still there")
	}
	if _, err := os.Stat("build/vm/console.log"); err != nil {
		t.Errorf("the console's log is gone: %v", err)
	}
}
