//go:build vm

package network

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/swapback/swapback/ci/peer"
	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/soak/rig"
)

// TestSecretsAndPaths: a host that proves its secret, and has the daemon prove its own,
// writes and verifies by two paths. One is cut, and mended; the host proves itself there
// once more, and writes on all the while.
func TestSecretsAndPaths(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secrets")
	secret, own := newSecret(t), newSecret(t)
	if err := os.WriteFile(path, []byte(rig.NVMeHost+" "+secret+" "+own), 0o600); err != nil {
		t.Fatal(err)
	}
	d, h := start(t, "--nvme-secrets", path)
	d.Volume("a", 64*MiB)
	e := d.Export("a", "--authenticate")
	proof := []string{"-i", "1", "--dhchap-secret", secret, "--dhchap-ctrl-secret", own}
	device := h.connect(e, proof...)

	second := rig.NewCable(t, net.JoinHostPort(d.own, "0"), net.JoinHostPort(d.own, "4420"))
	addr, port, err := net.SplitHostPort(second.Addr())
	if err != nil {
		t.Fatal(err)
	}
	line := append([]string{"nvme", "connect", "-t", "tcp", "-a", addr, "-s", port, "-n", e.NQN, "--reconnect-delay", "1"}, proof...)
	h.run(line...)
	h.script(`for f in /sys/class/nvme-subsystem/*/subsysnqn; do
			[[ $(<"$f") != "$NQN" ]] || echo round-robin >"${f%/*}/iopolicy"
		done`, "NQN="+e.NQN)
	paths := func(n int) {
		t.Helper()
		h.script(`for ((i = 0; i < 1200; i++)); do
				n=0
				for f in /sys/class/nvme/*/subsysnqn; do
					if [[ $(<"$f") == "$NQN" && $(<"${f%/*}/state") == live ]]; then n=$((n + 1)); fi
				done
				if [[ $n == "$WANT" ]]; then exit; fi
				sleep 0.1
			done 2>/dev/null
			echo "$n paths"; exit 1`, "NQN="+e.NQN, "WANT="+strconv.Itoa(n))
	}
	paths(2)
	writes := h.loop("--name=write", "--filename="+device, "--rw=randwrite", "--bsrange=4k-64k", "--blockalign=4k", "--size=2m", "--offset_increment=16m",
		"--numjobs=2", "--iodepth=8", "--group_reporting=1", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1")
	d.WaitHostIO("a", writes, 100)
	if n := second.Cut(); n < 1<<16 {
		t.Errorf("%d bytes have come by the second path", n)
	}
	d.WaitHostIO("a", writes, 50)
	paths(1)
	second.Mend()
	paths(2)
	d.WaitHostIO("a", writes, 50)
	t.Logf("%d runs of fio", writes.finish())
	h.leave(d, e)

	line[len(line)-1] = newSecret(t)
	if out, status := h.try(peer.Command{Args: line}); status == 0 {
		t.Errorf("a host connects to a daemon that proves nothing:\n%s", out)
	}
}

func newSecret(t *testing.T) string {
	t.Helper()
	s, err := auth.NewSecret(auth.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return s.Text()
}
