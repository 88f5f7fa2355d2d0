package nvmehost

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFind(t *testing.T) {
	sys := t.TempDir()
	const a, b, c = "33333333-0000-4000-8000-00000000000a", "33333333-0000-4000-8000-00000000000b", "33333333-0000-4000-8000-00000000000c"
	for name, uuid := range map[string]string{
		"nvme0n1": a + "\n", "nvme10n2": "33333333-0000-4000-8000-00000000000B\n", "nvme0c1n3": c + "\n", "sda": c + "\n", "nvme4n1p1": c + "\n", "nvme3n1": "",
	} {
		dir := filepath.Join(sys, "class/block", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if uuid == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "uuid"), []byte(uuid), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for uuid, want := range map[string]string{a: "/dev/nvme0n1", b: "/dev/nvme10n2", c: "", "": ""} {
		if got := (Host{Sys: sys}).Device(uuid); got != want {
			t.Errorf("%s is %q, want %q", uuid, got, want)
		}
	}
	if got := (Host{Sys: filepath.Join(sys, "nothing")}).Device(a); got != "" {
		t.Errorf("without sysfs: %q", got)
	}
}
