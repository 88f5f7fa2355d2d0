//go:build vm

package main

import (
	"slices"
	"strings"
	"testing"
)

// The machine that tests run in has all that swapback needs; what the doctor
// says of it comes from the kernel's own answers.
func TestDoctorInTheMachine(t *testing.T) {
	checks := thisMachineChecks(t)
	for _, name := range []string{"kernel", "root", "io_uring", "ublk", "device-mapper", "/dev", "disks"} {
		i := slices.IndexFunc(checks, func(c check) bool { return c.Name == name })
		if i < 0 || checks[i].Status != checkOK {
			t.Errorf("%s is not ok: %+v", name, checks)
		}
	}
	for _, c := range checks {
		if c.Status == checkMissing {
			t.Errorf("missing: %+v", c)
		}
		for name, want := range map[string]string{
			"ublk": "user-recovery-reissue", "device-mapper": "snapshot-origin", "disks": "/dev/nvme1n1 (4 GiB)",
		} {
			if c.Name == name && !strings.Contains(c.Detail, want) {
				t.Errorf("%s does not tell of %s: %s", name, want, c.Detail)
			}
		}
	}
}
