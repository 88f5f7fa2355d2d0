package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/swapback/swapback/ci/internal/qemu"
)

// accels remembers whether KVM works on this host, so that only the first
// machine has to find out.
type accels struct {
	file string
	// host is what the answer holds for: another host kernel or another QEMU
	// may answer differently.
	host string
	kvm  bool
}

type accelAnswer struct {
	Host  string
	Accel qemu.Accel
	Why   string
}

func newAccels(cacheDir string) *accels {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	version, _ := exec.Command(qemu.Program, "--version").Output()
	first, _, _ := strings.Cut(string(version), "\n")
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return &accels{
		file: filepath.Join(cacheDir, "accel.json"),
		host: strings.TrimSpace(string(release)) + ", " + first,
		kvm:  err == nil,
	}
}

// best returns the accelerator that is known to work, or "" if that has to be
// found out; the reason is empty only then.
func (a *accels) best() (accel qemu.Accel, reason string) {
	if !a.kvm {
		return qemu.TCG, "no usable /dev/kvm"
	}
	data, err := os.ReadFile(a.file)
	if err != nil {
		return "", ""
	}
	var known accelAnswer
	if json.Unmarshal(data, &known) != nil || known.Host != a.host {
		return "", ""
	}
	return known.Accel, known.Why
}

// remember is best effort: without it the next machine finds out again.
func (a *accels) remember(accel qemu.Accel, why string) {
	data, err := json.MarshalIndent(accelAnswer{a.host, accel, why}, "", "  ")
	if err != nil {
		return
	}
	tmp := a.file + ".new"
	if os.WriteFile(tmp, data, 0o644) == nil {
		_ = os.Rename(tmp, a.file)
	}
}
