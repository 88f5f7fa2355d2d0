package main

import (
	"path/filepath"
	"strconv"
	"strings"
)

// examineHost looks at a machine that is to use volumes of another one by NVMe/TCP.
func (m *machine) examineHost() []check {
	checks := []check{m.hostKernel(), m.nvmeTCP(), m.nvmeCLI(), m.hostName(), m.nativeMultipath(), m.nvmePatience()}
	return append(checks, m.hostConnections()...)
}

func (m *machine) hostKernel() check {
	if m.release() != "" && m.older(6, 12) {
		return degraded("kernel", newerKernel, "Linux %s is older than 6.12, the oldest that is tested", m.release())
	}
	return ok("kernel", "Linux %s", m.release())
}

func (m *machine) nvmeTCP() check {
	const name = "nvme-tcp"
	switch {
	case m.exists("sys/module/nvme_tcp"):
		return ok(name, "loaded")
	case m.hasModule("nvme_tcp"):
		return ok(name, "there; modprobe nvme-tcp loads it, nvme-tcp in /etc/modules-load.d/swapback.conf does so at each start")
	}
	return missing(name, "boot a kernel built with CONFIG_NVME_TCP; Debian's and Ubuntu's own kernels have it", "not in this kernel")
}

func (m *machine) nvmeCLI() check {
	for _, dir := range []string{"usr/sbin", "usr/bin", "usr/local/sbin", "usr/local/bin"} {
		if m.exists(filepath.Join(dir, "nvme")) {
			return ok("nvme-cli", "/%s/nvme", dir)
		}
	}
	return missing("nvme-cli", "install the package nvme-cli", "no nvme command")
}

// hostName looks for the names by which the host is let in and, for reservations, told
// from others.
func (m *machine) hostName() check {
	const name, remedy = "host NQN", `nvme gen-hostnqn >/etc/nvme/hostnqn; sed 's/.*uuid://' /etc/nvme/hostnqn >/etc/nvme/hostid`
	nqn, id := m.read("etc/nvme/hostnqn"), m.read("etc/nvme/hostid")
	switch {
	case nqn == "":
		return missing(name, remedy, "no /etc/nvme/hostnqn: exports are made to it")
	case !strings.HasPrefix(nqn, "nqn.") || len(nqn) > 223 || strings.ContainsAny(nqn, " \t\n"):
		return missing(name, remedy, "/etc/nvme/hostnqn has no NQN: %q", nqn)
	case id == "":
		return degraded(name, remedy, "%s, but no /etc/nvme/hostid: another one is made for each connection, and reservations do not hold over them", nqn)
	}
	return ok(name, "%s", nqn)
}

func (m *machine) nativeMultipath() check {
	const name = "multipath"
	switch m.read("sys/module/nvme_core/parameters/multipath") {
	case "Y":
		return ok(name, "native: a long pause is waited for, and a path may fail")
	case "":
		return ok(name, "not known before the module nvme-core is loaded; native unless nvme_core.multipath=N is given")
	}
	return degraded(name, "take nvme_core.multipath=N off the kernel's command line and out of /etc/modprobe.d",
		"switched off (nvme_core.multipath = N): a pause of more than 45 s ends connections, and a path that fails is waited for")
}

// nvmePatience are the parameters by which Linux decides that a command has failed.
func (m *machine) nvmePatience() check {
	const name = "patience"
	for _, p := range []struct {
		name  string
		least int64
	}{{"io_timeout", 30}, {"max_retries", 5}} {
		text := m.read("sys/module/nvme_core/parameters/" + p.name)
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && n < p.least {
			return degraded(name, "leave it at its default", "nvme_core.%s is %d, and %d by default: commands fail in pauses that are none of a fault", p.name, n, p.least)
		}
	}
	return ok(name, "timeout and retries of commands are at least the kernel's defaults")
}

// hostConnections looks at each connection to a swapbackd.
func (m *machine) hostConnections() (list []check) {
	dirs, _ := filepath.Glob(m.path("sys/class/nvme/nvme*"))
	for _, dir := range dirs {
		rel, _ := filepath.Rel(m.root, dir)
		attr := func(name string) string { return m.read(filepath.Join(rel, name)) }
		if attr("transport") != "tcp" || !strings.HasPrefix(attr("model"), "swapback ") {
			continue
		}
		name, volume := filepath.Base(dir), strings.TrimPrefix(attr("model"), "swapback ")
		loss, err := strconv.ParseInt(attr("ctrl_loss_tmo"), 10, 64) // "off": for ever
		switch state, fail := attr("state"), attr("fast_io_fail_tmo"); {
		case state != "live":
			list = append(list, degraded(name, "see whether swapbackd runs and can be reached; dmesg tells more", "%s, at %s: %s", volume, attr("address"), state))
		case err == nil && loss < 600:
			list = append(list, degraded(name, "connect with --ctrl-loss-tmo=600 or more, or -1", "%s: given up after %d s without a connection: a restart or a long pause may take longer", volume, loss))
		case fail != "" && fail != "off":
			list = append(list, degraded(name, "connect without --fast_io_fail_tmo", "%s: I/O fails after %s s without a connection", volume, fail))
		default:
			list = append(list, ok(name, "%s, at %s: live", volume, attr("address")))
		}
	}
	return list
}
