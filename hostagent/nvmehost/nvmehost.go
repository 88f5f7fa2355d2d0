// Package nvmehost is this machine as a host of NVMe namespaces: it finds volumes of
// other machines among the block devices (a volume that comes over NVMe has its own UUID
// as its namespace's, whatever name the kernel gives the device), says by which
// connections they are here, and connects and disconnects them.
//
// It speaks to the kernel, not to nvme-cli: /dev/nvme-fabrics takes a line of options, so
// that a secret is never on a command line, where all can read it, and sysfs has the rest.
package nvmehost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// SecretEnv names, for programs, the file that is [Host.SecretFile].
const SecretEnv = "SWAPBACK_NVME_SECRET"

// Host is a machine. The zero value is this one; tests have others.
type Host struct {
	Sys, Dev, Etc string // roots, default /sys, /dev and /etc
	// SecretFile has the DH-HMAC-CHAP secret that this machine proves who it is with when
	// it connects what it has no connection to the like of: a line, DHHC-1:…, and perhaps
	// a second with that of the other side. It has to be its owner's only. "" for none.
	SecretFile string
}

func (h Host) sys(path ...string) string {
	return filepath.Join(append([]string{or(h.Sys, "/sys")}, path...)...)
}
func (h Host) dev(name string) string { return filepath.Join(or(h.Dev, "/dev"), name) }
func (h Host) etc(name string) string { return filepath.Join(or(h.Etc, "/etc"), name) }

func or(s, usual string) string {
	if s == "" {
		return usual
	}
	return s
}

// namespace is the name of a device that can be opened. Those of single paths below
// a multipath device (nvme0c1n1) can't.
var namespace = regexp.MustCompile(`^nvme\d+n\d+$`)

// Device returns the path of this machine's block device of the volume with a UUID, or ""
// when it has none. Of several the first by name.
func Device(uuid string) string { return Host{}.Device(uuid) }

// Device is [Device] of this host.
func (h Host) Device(uuid string) string {
	if uuid == "" {
		return ""
	}
	list, err := os.ReadDir(h.sys("class/block"))
	if err != nil {
		return ""
	}
	var found []string
	for _, e := range list {
		if namespace.MatchString(e.Name()) && strings.EqualFold(attribute(h.sys("class/block", e.Name()), "uuid"), uuid) {
			found = append(found, h.dev(e.Name()))
		}
	}
	if len(found) == 0 {
		return ""
	}
	return slices.Min(found)
}

// attribute reads a file of sysfs; "" when there is none.
func attribute(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// waitEvery is the time between two looks for a device.
const waitEvery = 20 * time.Millisecond

// Wait returns the device with a UUID as soon as there is one that can be opened, or the
// reason of ctx's end: a host hears of a new namespace some time after it is there.
func (h Host) Wait(ctx context.Context, uuid string) (string, error) {
	t := time.NewTicker(waitEvery)
	defer t.Stop()
	for {
		if device := h.Device(uuid); device != "" {
			if _, err := os.Stat(device); err == nil {
				return device, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-t.C:
		}
	}
}

// Controller is one connection of this machine to a subsystem.
type Controller struct {
	Name      string // nvme0
	HostNQN   string // by which this machine is connected
	HostID    string
	Transport string
	Address   string // of the other side
	Port      string
	// Secrets of both sides, for a connection like this one; "" or as the kernel has them.
	secret, theirs string
}

// Controllers are those by which this machine has a device, by name.
func (h Host) Controllers(device string) ([]Controller, error) {
	link := h.sys("class/block", filepath.Base(device))
	real, err := filepath.EvalSymlinks(link)
	if err != nil {
		return nil, fmt.Errorf("connections of %s: %w", device, err)
	}
	above := filepath.Dir(real)
	dirs := []string{above} // the only one, without native multipath
	if attribute(above, "hostnqn") == "" {
		// The device of a subsystem, beside links to its controllers.
		if dirs, err = filepath.Glob(filepath.Join(above, "nvme*")); err != nil {
			return nil, fmt.Errorf("connections of %s: %w", device, err)
		}
	}
	var list []Controller
	for _, dir := range dirs {
		if c := readController(dir); c.HostNQN != "" {
			list = append(list, c)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("connections of %s: sysfs shows none with the name of a host", device)
	}
	slices.SortFunc(list, func(a, b Controller) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func readController(dir string) Controller {
	c := Controller{
		Name: filepath.Base(dir), HostNQN: attribute(dir, "hostnqn"), HostID: attribute(dir, "hostid"), Transport: attribute(dir, "transport"),
		secret: secretOf(dir, "dhchap_secret"), theirs: secretOf(dir, "dhchap_ctrl_secret"),
	}
	for option := range strings.SplitSeq(attribute(dir, "address"), ",") {
		switch name, value, _ := strings.Cut(option, "="); name {
		case "traddr":
			c.Address = value
		case "trsvcid":
			c.Port = value
		}
	}
	return c
}

func secretOf(dir, name string) string {
	if s := attribute(dir, name); s != "none" {
		return s
	}
	return ""
}

// Identity is the name and the identifier that this machine's administrator has given it
// as a host, in /etc/nvme.
func (h Host) Identity() (nqn, id string, err error) {
	nqn, id = attribute(h.etc("nvme"), "hostnqn"), attribute(h.etc("nvme"), "hostid")
	if nqn == "" {
		return "", "", fmt.Errorf("%s names no host (nvme gen-hostnqn makes a name)", h.etc("nvme/hostnqn"))
	}
	if id == "" {
		// As nvme-cli does: the UUID of the name.
		_, id, _ = strings.Cut(nqn, ":uuid:")
	}
	return nqn, id, nil
}

// secrets reads SecretFile.
func (h Host) secrets() (ours, theirs string, err error) {
	if h.SecretFile == "" {
		return "", "", nil
	}
	fi, err := os.Stat(h.SecretFile)
	if err != nil {
		return "", "", err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return "", "", fmt.Errorf("%s can be read by others: chmod 600 %s", h.SecretFile, h.SecretFile)
	}
	text, err := os.ReadFile(h.SecretFile)
	if err != nil {
		return "", "", err
	}
	lines := strings.Fields(string(text))
	if len(lines) == 0 || len(lines) > 2 || !slices.ContainsFunc(lines, func(s string) bool { return strings.HasPrefix(s, "DHHC-1:") }) {
		return "", "", errors.New(h.SecretFile + ": want a secret, DHHC-1:…, and perhaps that of the other side")
	}
	return lines[0], strings.Join(lines[1:], ""), nil
}
