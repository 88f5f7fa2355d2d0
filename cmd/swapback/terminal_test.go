package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/swapback/swapback/api"
)

// TestOthersTextDoesNotReachTheTerminal: labels, names of processes, mount points
// and reasons are written by others, and reach people as text only.
func TestOthersTextDoesNotReachTheTerminal(t *testing.T) {
	const hostile = "a\x1b]0;owned\x07\x1b[2Jb\rc\u202ed"
	c := newCLI(t)
	c.svc.volumes[1].Position.Quarantine.Reason = hostile
	c.svc.volumes[2].Error, c.svc.volumes[2].State = hostile, api.StateFailed
	c.svc.volumes[0].Position.DescendsFrom = hostile
	c.svc.holders = []api.Holder{{Kind: "process", Device: "/dev/ublkb0", PID: 7, Command: hostile, Detail: "mounted on /mnt/" + hostile}}
	c.svc.report = api.CheckReport{Pool: "tank", Problems: []string{hostile}}
	c.svc.info.Failed = []api.FailedPool{{Name: hostile, Disks: []string{hostile}, Error: hostile}}
	look := func(args ...string) {
		t.Helper()
		out, errOut, _ := c.run(args...)
		if !strings.Contains(out+errOut, "]0;owned") {
			t.Errorf("%q does not show the text at all: the test sees nothing", args)
		}
		if strings.ContainsAny(out+errOut, "\x1b\x07\r\u202e") {
			t.Errorf("%q prints %q %q", args, out, errOut)
		}
	}
	look("volume", "list")
	look("volume", "show", "db")
	look("volume", "show", "db-spare")
	look("volume", "holders", "db")
	look("pool", "check", "tank")
	look("pool", "list")
	c.tty, c.stdin = true, "n\n"
	look("volume", "delete", "db-spare", "--force")
	c.svc.fail = fmt.Errorf("taking it away: %w", &api.Error{Code: api.CodeInUse, Message: hostile, Holders: c.svc.holders})
	look("volume", "delete", "db", "--yes")
}

// TestDisksAreNamedFromTheRoot: a path is the caller's, wherever the daemon runs.
func TestDisksAreNamedFromTheRoot(t *testing.T) {
	t.Chdir("/usr/lib")
	c := newCLI(t)
	c.run("pool", "create", "tank2", "x", "../y//z", "/dev/./a")
	want := []any{api.CreatePoolRequest{Name: "tank2", Disks: []string{"/usr/lib/x", "/usr/y/z", "/dev/a"}}}
	if diff := cmp.Diff(want, c.svc.created); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
}
