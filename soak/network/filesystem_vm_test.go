//go:build vm

package network

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/swapback/swapback/ci/peer"
	"github.com/swapback/swapback/soak/rig"
)

// TestHostFilesystem: a filesystem that the host has made and filled comes back as it
// was before a change that went wrong. The host asks for the swap, from afar.
func TestHostFilesystem(t *testing.T) {
	const size = 64 * MiB
	d, h := start(t)
	db, spare := d.Volume("db", size), d.Volume("db-spare", size)
	e := d.Export("db")
	pem := filepath.Join(t.TempDir(), "host1.pem")
	rig.Tool(t, "swapback", "cert", "issue", "host1", "--allow", "list,swap", "--volume", "tank/db,tank/db-spare", "--dir", d.certs, "--out", pem)
	h.send(pem, h.dir+"/host1.pem")
	remote := []string{"--server", d.own, "--cert", h.dir + "/host1.pem"}

	device := h.connect(e, "-i", "2")
	h.run("mkfs.ext4", "-q", device)
	h.mount(device)
	good := h.tree("good", 60)
	h.unmount(device)
	h.leave(d, e)
	copyDevice(t, db.Device, spare.Device, int(size))

	device = h.connect(e, "-i", "2")
	h.mount(device)
	if got := h.sums(); got != good {
		t.Errorf("connected again, the host reads\n%s\nand has written\n%s", got, good)
	}
	h.script(`rm -r "$DIR/mnt/good/a" && echo wrong >"$DIR/mnt/good/b/d/aa"`)
	bad := h.tree("bad", 20)

	// Mounted there: not now. The host itself knows what holds the device.
	asks := append([]string{"swapback", "swap", "db", "db-spare"}, remote...)
	if out, status := h.try(peer.Command{Args: asks}); status != 4 || !strings.Contains(out, device+": mounted on "+h.dir) {
		t.Errorf("a swap under the host's filesystem: status %d, %s", status, out)
	}
	for _, state := range []struct{ name, sums string }{{"the good state", good}, {"the bad state", bad}} {
		h.unmount(device)
		h.leave(d, e)
		h.run(asks...)
		device = h.connect(e, "-i", "2")
		h.mount(device)
		if got := h.sums(); got != state.sums {
			t.Errorf("after the swap to %s the host reads\n%s\nnot\n%s", state.name, got, state.sums)
		}
	}
	h.unmount(device)
	h.leave(d, e)
}

// mount mounts a device where tree and sums look.
func (h *host) mount(device string) {
	h.t.Helper()
	h.script(`mkdir -p "$DIR/mnt" && mount "$DEV" "$DIR/mnt"`, "DEV="+device)
}

func (h *host) unmount(device string) {
	h.t.Helper()
	h.script(`umount "$DIR/mnt" && e2fsck -fn "$DEV"`, "DEV="+device)
}

// tree writes some files of chance below name, and returns what sums does.
func (h *host) tree(name string, files int) string {
	h.t.Helper()
	h.script(`cd "$DIR/mnt"
		mkdir -p "$NAME"/{a,b,c}/d
		for d in "$NAME"/{a,b,c}/d; do head -c $((FILES * 10007)) /dev/urandom | split -b 30021 - $d/; done`,
		"NAME="+name, "FILES="+strconv.Itoa(files))
	return h.sums()
}

// sums has a checksum for each file.
func (h *host) sums() string {
	h.t.Helper()
	return h.script(`cd "$DIR/mnt" && find . -type f -print0 | sort -z | xargs -0 sha256sum`)
}

// send brings a file of secrets to the host.
func (h *host) send(from, to string) {
	h.t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		h.t.Fatal(err)
	}
	h.script(`umask 077 && printf %s "$DATA" >"$TO"`, "DATA="+string(data), "TO="+to)
}

// copyDevice copies all of a volume past the daemon's notice, as a restore would leave it.
func copyDevice(t *testing.T, from, to string, n int) {
	t.Helper()
	rig.WriteDevice(t, to, 0, rig.ReadDevice(t, from, 0, n))
}
