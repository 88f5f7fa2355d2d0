package nvmehost

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	disk = "33333333-0000-4000-8000-00000000000a"
	ours = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
)

// files writes what sysfs would show.
func files(t *testing.T, root string, content map[string]string) {
	t.Helper()
	for name, text := range content {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func link(t *testing.T, root, name, to string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(filepath.Join(root, to), path)); err != nil {
		t.Fatal(err)
	}
}

// machine is one with native multipath, on which nvme0n1 has two connections, and without on
// which nvme7n1 has one; nvme9n1 is a disk of its own.
func machine(t *testing.T) Host {
	t.Helper()
	sys, dev := t.TempDir(), t.TempDir()
	const virtual, fabrics = "devices/virtual/nvme-subsystem/nvme-subsys0", "devices/virtual/nvme-fabrics/ctl"
	files(t, sys, map[string]string{
		virtual + "/nvme0n1/uuid":            disk + "\n",
		fabrics + "/nvme0/hostnqn":           ours + "\n",
		fabrics + "/nvme0/hostid":            "11111111-2222-3333-4444-555555555555\n",
		fabrics + "/nvme0/transport":         "tcp\n",
		fabrics + "/nvme0/address":           "traddr=192.0.2.1,trsvcid=4420,src_addr=192.0.2.7\n",
		fabrics + "/nvme0/dhchap_secret":     "DHHC-1:00:c2VjcmV0:\n",
		fabrics + "/nvme1/hostnqn":           ours + "\n",
		fabrics + "/nvme1/transport":         "tcp\n",
		fabrics + "/nvme1/address":           "traddr=2001:db8::1,trsvcid=4420\n",
		fabrics + "/nvme1/dhchap_secret":     "none\n",
		fabrics + "/nvme7/hostnqn":           "nqn.2014-08.org.example:other\n",
		fabrics + "/nvme7/nvme7n1/uuid":      "33333333-0000-4000-8000-000000000007\n",
		"devices/pci/nvme9/nvme9n1/uuid":     "33333333-0000-4000-8000-000000000009\n",
		"devices/pci/nvme9/address":          "0000:00:04.0\n",
		"class/nvme/nvme3/delete_controller": "",
	})
	link(t, sys, virtual+"/nvme0", fabrics+"/nvme0")
	link(t, sys, virtual+"/nvme1", fabrics+"/nvme1")
	link(t, sys, "class/block/nvme0n1", virtual+"/nvme0n1")
	link(t, sys, "class/block/nvme7n1", fabrics+"/nvme7/nvme7n1")
	link(t, sys, "class/block/nvme9n1", "devices/pci/nvme9/nvme9n1")
	return Host{Sys: sys, Dev: dev, Etc: t.TempDir()}
}

func TestControllers(t *testing.T) {
	h := machine(t)
	list, err := h.Controllers(h.Device(disk))
	want := []Controller{
		{Name: "nvme0", HostNQN: ours, HostID: "11111111-2222-3333-4444-555555555555", Transport: "tcp", Address: "192.0.2.1", Port: "4420", secret: "DHHC-1:00:c2VjcmV0:"},
		{Name: "nvme1", HostNQN: ours, Transport: "tcp", Address: "2001:db8::1", Port: "4420"},
	}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := h.Controllers("/dev/nvme7n1"); err != nil || len(list) != 1 || list[0].HostNQN != "nqn.2014-08.org.example:other" {
		t.Errorf("without multipath: %+v, %v", list, err)
	}
	for _, device := range []string{"/dev/nvme9n1", "/dev/nvme8n1", ""} {
		if list, err := h.Controllers(device); err == nil {
			t.Errorf("%q has connections: %+v", device, list)
		}
	}
}

// TestWays: a new connection is like one that is there, or as the machine's administrator has
// named it; nothing can slip another option in.
func TestWays(t *testing.T) {
	h := machine(t)
	like, err := h.Controllers(h.Device(disk))
	if err != nil {
		t.Fatal(err)
	}
	ways, err := h.ways(Subsystem{NQN: "nqn.x", Like: like, Addresses: []string{"192.0.2.9:1"}})
	if err != nil || !slices.Equal(ways, []string{
		"transport=tcp,traddr=192.0.2.1,trsvcid=4420,nqn=nqn.x,hostnqn=" + ours + ",hostid=11111111-2222-3333-4444-555555555555,dhchap_secret=DHHC-1:00:c2VjcmV0:",
		"transport=tcp,traddr=2001:db8::1,trsvcid=4420,nqn=nqn.x,hostnqn=" + ours,
	}) {
		t.Errorf("like others: %q, %v", ways, err)
	}
	alone := Subsystem{NQN: "nqn.x", Addresses: []string{"192.0.2.9:4420", "[2001:db8::9]:4421"}}
	if ways, err := h.ways(alone); err == nil || !strings.Contains(err.Error(), "nvme gen-hostnqn") {
		t.Errorf("without a name: %q, %v", ways, err)
	}
	files(t, h.Etc, map[string]string{"nvme/hostnqn": ours + "\n", "secret": "DHHC-1:00:b3Vycw==:\nDHHC-1:00:dGhlaXJz:\n"})
	h.SecretFile = filepath.Join(h.Etc, "secret")
	ways, err = h.ways(alone)
	const tail = ",nqn=nqn.x,hostnqn=" + ours + ",hostid=11111111-2222-3333-4444-555555555555,dhchap_secret=DHHC-1:00:b3Vycw==:,dhchap_ctrl_secret=DHHC-1:00:dGhlaXJz:"
	if err != nil || !slices.Equal(ways, []string{"transport=tcp,traddr=192.0.2.9,trsvcid=4420" + tail, "transport=tcp,traddr=2001:db8::9,trsvcid=4421" + tail}) {
		t.Errorf("alone: %q, %v", ways, err)
	}
	for what, s := range map[string]Subsystem{
		"an option in the name": {NQN: "nqn.x,traddr=192.0.2.66", Addresses: alone.Addresses},
		"one in an address":     {NQN: "nqn.x", Addresses: []string{"192.0.2.9,nqn=y:4420"}},
		"no port":               {NQN: "nqn.x", Addresses: []string{"192.0.2.9"}},
		"no address":            {NQN: "nqn.x"},
	} {
		if ways, err := h.ways(s); err == nil {
			t.Errorf("%s: %q", what, ways)
		}
	}
}

func TestSecretFile(t *testing.T) {
	h := machine(t)
	for text, want := range map[string]string{"": "want a secret", "secret\n": "want a secret", "DHHC-1:a b c": "want a secret", "DHHC-1:a:": ""} {
		h.SecretFile = filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(h.SecretFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := h.secrets(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := os.Chmod(h.SecretFile, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.secrets(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a secret that others can read: %v", err)
	}
}

// TestWait: a device that comes is found when it can be opened; one that does not is waited
// for no longer than the caller says.
func TestWait(t *testing.T) {
	h := machine(t)
	go func() {
		time.Sleep(50 * time.Millisecond)
		_ = os.WriteFile(filepath.Join(h.Dev, "nvme0n1"), nil, 0o600)
	}()
	if device, err := h.Wait(t.Context(), disk); err != nil || device != filepath.Join(h.Dev, "nvme0n1") {
		t.Errorf("%q, %v", device, err)
	}
	why := errors.New("not soon")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, why)
	defer cancel()
	if device, err := h.Wait(ctx, "33333333-0000-4000-8000-00000000000f"); !errors.Is(err, why) {
		t.Errorf("%q, %v", device, err)
	}
}

// TestConnectWithoutAnInitiator says what is missing.
func TestConnectWithoutAnInitiator(t *testing.T) {
	h := machine(t)
	files(t, h.Etc, map[string]string{"nvme/hostnqn": ours})
	_, err := h.Connect(t.Context(), Subsystem{NQN: "nqn.x", UUID: disk, Addresses: []string{"192.0.2.9:4420"}})
	if err == nil || !strings.Contains(err.Error(), "modprobe nvme-tcp") {
		t.Errorf("%v", err)
	}
	c := Connection{host: h, name: "nvme3"}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(h.Sys, "class/nvme/nvme3/delete_controller")); err != nil || string(text) != "1" {
		t.Errorf("%q, %v", text, err)
	}
	c.name = "nvme4" // gone by itself
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
