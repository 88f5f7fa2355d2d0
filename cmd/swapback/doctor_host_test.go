package main

import (
	"strings"
	"testing"
)

// goodHost is a machine that can use volumes of another one, and uses one.
func goodHost(t *testing.T) *machine {
	t.Helper()
	m := &machine{root: t.TempDir(), root0: true}
	m.file(t, "proc/sys/kernel/osrelease", "7.3.4+deb13-amd64\n")
	for _, release := range []string{"7.3.4+deb13-amd64", "6.1.0-18-amd64"} {
		m.file(t, "lib/modules/"+release+"/modules.dep", "kernel/drivers/nvme/host/nvme-tcp.ko.xz: kernel/drivers/nvme/host/nvme-fabrics.ko.xz\n")
	}
	m.file(t, "usr/sbin/nvme", "")
	m.file(t, "etc/nvme/hostnqn", "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555\n")
	m.file(t, "etc/nvme/hostid", "11111111-2222-3333-4444-555555555555\n")
	m.file(t, "sys/module/nvme_core/parameters/multipath", "Y\n")
	m.file(t, "sys/module/nvme_core/parameters/io_timeout", "30\n")
	m.file(t, "sys/module/nvme_core/parameters/max_retries", "5\n")
	for name, value := range map[string]string{
		"transport": "tcp", "model": "swapback tank/db", "state": "live", "address": "traddr=192.0.2.1,trsvcid=4420",
		"ctrl_loss_tmo": "600", "fast_io_fail_tmo": "off",
	} {
		m.file(t, "sys/class/nvme/nvme2/"+name, value+"\n")
	}
	m.file(t, "sys/class/nvme/nvme0/transport", "pcie\n")
	m.file(t, "sys/class/nvme/nvme0/model", "a disk\n")
	return m
}

func TestDoctorOfGoodHost(t *testing.T) {
	list := goodHost(t).examineHost()
	for _, c := range list {
		if c.Status != checkOK || c.Remedy != "" || c.Detail == "" {
			t.Errorf("%+v", c)
		}
	}
	if last := list[len(list)-1]; last.Name != "nvme2" || !strings.Contains(last.Detail, "tank/db") || len(list) != 7 {
		t.Errorf("checks: %+v", list)
	}
}

func TestDoctorOfHostFinds(t *testing.T) {
	for _, tt := range []struct {
		name, file, content string // "": no such file
		check, status       string
	}{
		{"an old kernel", "proc/sys/kernel/osrelease", "6.1.0-18-amd64", "kernel", checkDegraded},
		{"no module", "lib/modules/7.3.4+deb13-amd64/modules.dep", "", "nvme-tcp", checkMissing},
		{"no nvme-cli", "usr/sbin/nvme", "", "nvme-cli", checkMissing},
		{"no name", "etc/nvme/hostnqn", "", "host NQN", checkMissing},
		{"a name that is none", "etc/nvme/hostnqn", "my host", "host NQN", checkMissing},
		{"no identifier", "etc/nvme/hostid", "", "host NQN", checkDegraded},
		{"no native multipath", "sys/module/nvme_core/parameters/multipath", "N", "multipath", checkDegraded},
		{"a short timeout", "sys/module/nvme_core/parameters/io_timeout", "5", "patience", checkDegraded},
		{"no retries", "sys/module/nvme_core/parameters/max_retries", "0", "patience", checkDegraded},
		{"a lost connection", "sys/class/nvme/nvme2/state", "connecting", "nvme2", checkDegraded},
		{"one that is given up early", "sys/class/nvme/nvme2/ctrl_loss_tmo", "30", "nvme2", checkDegraded},
		{"one that fails I/O early", "sys/class/nvme/nvme2/fast_io_fail_tmo", "5", "nvme2", checkDegraded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := goodHost(t)
			if tt.content == "" {
				m.remove(t, tt.file)
			} else {
				m.file(t, tt.file, tt.content)
			}
			for _, c := range m.examineHost() {
				want := checkOK
				if c.Name == tt.check {
					want = tt.status
				}
				if c.Status != want || want != checkOK && c.Remedy == "" {
					t.Errorf("%+v, want %s", c, want)
				}
			}
		})
	}
	forever := goodHost(t)
	forever.file(t, "sys/class/nvme/nvme2/ctrl_loss_tmo", "off")
	forever.file(t, "sys/module/nvme_tcp/refcnt", "2")
	for _, c := range forever.examineHost() {
		if c.Status != checkOK {
			t.Errorf("%+v", c)
		}
	}
}
