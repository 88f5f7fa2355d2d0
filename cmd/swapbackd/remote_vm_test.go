//go:build vm

package main

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/swapback/swapback/soak/rig"
)

// TestRemoteAPIOfARealDaemon: three commands make a working setup; a client does what it may,
// is refused the rest, and is out when it is revoked.
func TestRemoteAPIOfARealDaemon(t *testing.T) {
	tmp := t.TempDir()
	dir, pem := filepath.Join(tmp, "remote"), filepath.Join(tmp, "host1.pem")
	for _, args := range [][]string{
		{"cert", "init", "127.0.0.1", "--dir", dir},
		{"cert", "issue", "host1", "--allow", "list,swap", "--volume", "tank/a,tank/b", "--dir", dir, "--out", pem},
	} {
		if out, err := exec.Command("swapback", args...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v %s", args, err, out)
		}
	}
	const address = "127.0.0.1:7443"
	d := rig.Start(t, "--api-listen", address, "--api-cert", filepath.Join(dir, "server.pem"), "--api-ca", filepath.Join(dir, "ca.pem"), "--api-access", filepath.Join(dir, "access"))
	d.Pool()
	a, _ := d.Volume("a", 16<<20), d.Volume("b", 16<<20)
	d.Volume("c", 16<<20)
	from := func(exit int, words []string, args ...string) {
		t.Helper()
		d.CLI(exit, words, append(args, "--server", address, "--cert", pem)...)
	}
	from(0, []string{"a", "b"}, "volume", "list")
	from(0, nil, "swap", "a", "b")
	if now := d.Show("a"); now.Position.ID == a.Position.ID {
		t.Error("a shows what it showed before the swap")
	}
	from(5, []string{"host1", "manage", "allow host1 manage POOL/NAME"}, "volume", "grow", "tank/a", "--size", "32M")
	from(5, []string{"host1"}, "swap", "a", "c")
	d.CLI(0, nil, "cert", "revoke", "host1", "--dir", dir)
	rig.WaitUntil(t, "the client is refused", func() bool {
		return exec.Command("swapback", "volume", "list", "--server", address, "--cert", pem).Run() != nil
	})
	from(5, []string{"revoked"}, "volume", "list")
}
