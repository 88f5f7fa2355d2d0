//go:build vm

package network

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/ci/peer"
	"github.com/swapback/swapback/soak/rig"
)

const MiB = rig.MiB

// host is the machine that uses the storage machine's volumes. When the test ends it
// is disconnected, and fails the test if its kernel has complained.
type host struct {
	*peer.Machine
	t *testing.T
	// dir is a folder there, empty at the start.
	dir string
}

// daemon is the storage machine's swapbackd, with pool "tank", and the folder of its
// certificates.
type daemon struct {
	*rig.Daemon
	t     *testing.T
	own   string
	certs string
}

// start starts both. The daemon listens for hosts and for clients of its API, and has more
// arguments.
func start(t *testing.T, args ...string) (*daemon, *host) {
	t.Helper()
	m, err := peer.Other()
	if err != nil {
		t.Fatal(err)
	}
	certs := filepath.Join(t.TempDir(), "remote")
	rig.Tool(t, "swapback", "cert", "init", m.Own, "--dir", certs)
	args = append([]string{"--nvme-listen", m.Own, "--api-listen", m.Own + ":7443", "--api-cert", filepath.Join(certs, "server.pem"),
		"--api-ca", filepath.Join(certs, "ca.pem"), "--api-access", filepath.Join(certs, "access")}, args...)
	d := &daemon{rig.Start(t, args...), t, m.Own, certs}
	kernel := rig.OpenKernelLog(t)
	h := &host{m, t, "/run/test-" + t.Name()}
	// What ends with the test is in this order: the host lets go before the pool is removed.
	t.Cleanup(func() {
		h.script(`umount "$DIR/mnt" 2>/dev/null || true # of a test that failed
			nvme disconnect-all`)
		kernel.ExpectQuiet(t)
		h.finish()
	})
	h.script(`modprobe nvme-tcp && rm -rf "$DIR" && mkdir -p "$DIR" /etc/nvme && dmesg --clear &&
		echo "$NQN" >/etc/nvme/hostnqn && echo "$ID" >/etc/nvme/hostid`, "NQN="+rig.NVMeHost, "ID="+strings.TrimPrefix(rig.NVMeHost, rig.NVMeUUID))
	d.Pool()
	return d, h
}

// finish looks into the kernel's log.
func (h *host) finish() {
	h.t.Helper()
	lines := strings.Split(h.run("dmesg"), "\n")
	rig.ExpectQuietLines(h.t, "the host's kernel", lines)
	if h.t.Failed() {
		h.t.Logf("the host's kernel said:\n%s", rig.Tail(strings.Join(lines, "\n"), 60))
	}
}

// try runs a program on the host, with both channels of its output in one.
func (h *host) try(c peer.Command) (out string, status int) {
	h.t.Helper()
	var b strings.Builder
	status, err := h.Run(c, &b, &b)
	if err != nil {
		h.t.Fatal(err)
	}
	return b.String(), status
}

// run is try for a program that has to succeed.
func (h *host) run(args ...string) string {
	h.t.Helper()
	return h.runWith(peer.Command{Args: args})
}

func (h *host) runWith(c peer.Command) string {
	h.t.Helper()
	out, status := h.try(c)
	if status != 0 {
		h.t.Fatalf("on the host: %q: status %d\n%s", c.Args, status, out)
	}
	return out
}

// script runs a shell's script, which has to succeed. DIR is the host's folder.
func (h *host) script(text string, env ...string) string {
	h.t.Helper()
	return h.runWith(peer.Command{Args: []string{"bash", "-euc", text}, Env: append(env, "DIR="+h.dir)})
}

// connect runs the line that an export shows, as an operator would who has a hurry to
// get the connection back, and returns the block device.
func (h *host) connect(e api.Export, args ...string) string {
	h.t.Helper()
	line, _, _ := strings.Cut(e.Connect[0], " --dhchap-secret")
	h.run(append(strings.Fields(line), append(args, "--reconnect-delay", "1")...)...)
	// The shell's own words only: on this machine each program that is started takes its time.
	return strings.TrimSpace(h.script(`for ((i = 0; i < 1200; i++)); do
			for f in /sys/block/nvme*/uuid; do
				dir=${f%/uuid} uuid=
				dev=/dev/${dir##*/}
				{ read -r uuid <"$f"; } 2>/dev/null || true
				if [[ $uuid == "$UUID" && -b $dev ]]; then echo "$dev"; exit; fi
			done
			sleep 0.1
		done
		echo "no namespace $UUID"; exit 1`, "UUID="+e.UUID))
}

// leave disconnects, and returns when the daemon has seen that.
func (h *host) leave(d *daemon, e api.Export) {
	h.t.Helper()
	h.run("nvme", "disconnect", "-n", e.NQN)
	rig.WaitUntil(h.t, "the host to be gone from "+e.Volume, func() bool {
		now, err := d.Client.Export(h.t.Context(), e.Volume)
		return err == nil && len(now.Connected) == 0
	})
}
