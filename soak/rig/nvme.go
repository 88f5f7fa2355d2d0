package rig

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
)

// Hosts of the tests, in which the kernel's own NVMe/TCP initiator is the other host, by
// loopback.
const (
	NVMeUUID     = "nqn.2014-08.org.nvmexpress:uuid:"
	NVMeHost     = NVMeUUID + "11111111-2222-3333-4444-555555555555"
	NVMeStranger = NVMeUUID + "66666666-2222-3333-4444-555555555555"
)

// NVMe runs nvme-cli as a host. Linux wants each to have an identifier of its own.
func NVMe(host string, args ...string) (string, error) {
	out, err := exec.Command("nvme", append(args, "--hostnqn", host, "--hostid", strings.TrimPrefix(host, NVMeUUID))...).CombinedOutput()
	return string(out), err
}

// Export exports a volume to NVMeHost by the command line.
func (d *Daemon) Export(name string, args ...string) (e api.Export) {
	d.t.Helper()
	out := d.CLI(0, nil, append([]string{"export", "create", name, "--host", NVMeHost, "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &e); err != nil || !e.Serving || len(e.Connect) == 0 {
		d.t.Fatalf("export %s: %v\n%s", name, err, out)
	}
	return e
}

// Connect runs the first line that an export shows, with more arguments, and returns the
// block device. It is disconnected when the test ends.
func (d *Daemon) Connect(e api.Export, args ...string) string {
	d.t.Helper()
	d.t.Cleanup(func() { Disconnect(e) })
	d.ConnectPath(e, 0, args...)
	device := ""
	WaitUntil(d.t, "the host's block device of "+e.Volume, func() bool { device = NamespaceOf(e.UUID); return device != "" })
	return device
}

// ConnectPath runs one of the lines that an export shows.
func (d *Daemon) ConnectPath(e api.Export, line int, args ...string) {
	d.t.Helper()
	text, _, _ := strings.Cut(e.Connect[line], " --dhchap-secret")
	if out, err := NVMe(NVMeHost, append(strings.Fields(text)[1:], args...)...); err != nil {
		d.t.Fatalf("%s: %v\n%s\n%s", text, err, out, Tail(Tool(d.t, "dmesg"), 20))
	}
}

// Disconnect ends all connections of the host to an export.
func Disconnect(e api.Export) { _ = exec.Command("nvme", "disconnect", "-n", e.NQN).Run() }

// Leave disconnects, and returns when the daemon has seen that.
func (d *Daemon) Leave(name string, e api.Export) {
	d.t.Helper()
	Disconnect(e)
	WaitUntil(d.t, "the host of "+name+" to be gone", func() bool {
		now, err := d.Client.Export(d.t.Context(), name)
		return err == nil && len(now.Connected) == 0
	})
}

// NamespaceOf finds the block device with a UUID, or returns "".
func NamespaceOf(uuid string) string {
	list, _ := filepath.Glob("/sys/block/nvme*/uuid")
	for _, path := range list {
		text, err := os.ReadFile(path)
		device := "/dev/" + filepath.Base(filepath.Dir(path))
		if _, missing := os.Stat(device); err == nil && missing == nil && strings.TrimSpace(string(text)) == uuid {
			return device
		}
	}
	return ""
}

// Controllers are the host's controllers of a subsystem, as "nvme3", with their states.
func Controllers(nqn string) map[string]string {
	list, _ := filepath.Glob("/sys/class/nvme/nvme*/subsysnqn")
	out := map[string]string{}
	for _, path := range list {
		text, _ := os.ReadFile(path)
		if strings.TrimSpace(string(text)) == nqn {
			state, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "state"))
			out[filepath.Base(filepath.Dir(path))] = strings.TrimSpace(string(state))
		}
	}
	return out
}

// HostIO is how many commands a volume's hosts have been answered.
func (d *Daemon) HostIO(name string) uint64 {
	d.t.Helper()
	e, err := d.Client.Export(d.t.Context(), name)
	if err != nil || e.IO == nil {
		d.t.Fatalf("export of %s: %+v, %v", name, e, err)
	}
	return e.IO.Reads + e.IO.Writes
}

// load is a fio in the background.
type load interface {
	Ended() bool
	Err() error
}

// WaitHostIO waits until fio has had n more commands answered.
func (d *Daemon) WaitHostIO(name string, l load, n uint64) {
	d.t.Helper()
	want := d.HostIO(name) + n
	WaitUntil(d.t, "the host's I/O to go on", func() bool { return d.HostIO(name) >= want || l.Ended() })
	if err := l.Err(); err != nil {
		d.t.Fatal(err)
	}
}

// HostJob is a fio job of two threads for a host's block device.
func HostJob(device, size string, more ...string) []string {
	return append([]string{
		"--name=host", "--filename=" + device, "--direct=1", "--ioengine=io_uring", "--iodepth=8", "--numjobs=2",
		"--offset_increment=16m", "--size=" + size, "--bsrange=4k-64k", "--blockalign=4k", "--group_reporting=1",
	}, more...)
}

// multipath is the parameter by which Linux is told to use native multipath.
const multipath = "/sys/module/nvme_core/parameters/multipath"

// SetNativeMultipath has the kernel's NVMe driver use native multipath or not, which it
// decides when it is loaded: the machine's disks go and come back, under the same names.
// Nobody may have them open. When the test ends all is as it was.
func SetNativeMultipath(t *testing.T, on bool) {
	t.Helper()
	want, other := "N", "Y"
	if on {
		want, other = other, want
	}
	text, err := os.ReadFile(multipath)
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(text)) == want {
		return
	}
	loadNVMe(t, want)
	t.Cleanup(func() { loadNVMe(t, other) })
}

func loadNVMe(t *testing.T, value string) {
	t.Helper()
	disks := Disks(t)
	var addresses []string
	for i := range disks {
		text, err := os.ReadFile("/sys/block/" + filepath.Base(disks[i]) + "/device/address")
		if err != nil { // native multipath: the disk's device is its subsystem
			text, err = os.ReadFile("/sys/class/nvme/" + strings.TrimSuffix(filepath.Base(disks[i]), "n1") + "/address")
		}
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, strings.TrimSpace(string(text)))
	}
	Tool(t, "modprobe", "-r", "nvme_tcp", "nvme_fabrics", "nvme", "nvme_core")
	Tool(t, "modprobe", "nvme_core", "multipath="+value)
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	// One after another: left alone the driver takes them all at once, and their names are
	// as it happens.
	write("/sys/bus/pci/drivers_autoprobe", "0")
	Tool(t, "modprobe", "nvme")
	for i, a := range addresses {
		write("/sys/bus/pci/drivers/nvme/bind", a)
		WaitUntil(t, disks[i]+" to come back", func() bool {
			_, err := os.Stat(disks[i])
			return err == nil
		})
	}
	write("/sys/bus/pci/drivers_autoprobe", "1")
}
