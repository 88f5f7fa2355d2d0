//go:build vm

package main

import (
	"encoding/json"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
	"github.com/swapback/swapback/soak/rig"
)

// TestHost: the kernel's initiator with one, two and eight queues, with and without
// digests, through what happens to a connection; and filesystems on the disk.
func TestHost(t *testing.T) {
	d := startExporting(t)
	d.Pool()
	d.Volume("a", 512*MiB) // as much as xfs wants
	e := d.Export("a")
	kernel := rig.OpenKernelLog(t)
	for _, v := range []struct {
		name   string
		queues int
		args   []string
		fs     string
		check  []string
	}{
		{"1 queue", 1, []string{"-i", "1"}, "", nil},
		{"2 queues, both digests", 2, []string{"-i", "2", "-g", "-G"}, "ext4", []string{"e2fsck", "-fn"}},
		// Linux makes no more queues of a kind than there are processors, of which there are four.
		{"8 queues, data digest", 8, []string{"-i", "4", "-W", "4", "-G"}, "xfs", []string{"xfs_repair", "-n"}},
	} {
		t.Run(v.name, func(t *testing.T) {
			device := d.Connect(e, append(v.args, "--reconnect-delay", "1")...)
			now, err := d.Client.Export(t.Context(), "a")
			if err != nil || len(now.Connected) != 1 || now.Connected[0].Queues != v.queues {
				t.Errorf("connected: %+v, %v", now.Connected, err)
			}
			ctrl := "/dev/" + slices.Collect(maps.Keys(rig.Controllers(e.NQN)))[0]
			rig.RunFio(t, rig.HostJob(device, "2m", "--rw=randwrite", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"))
			if v.fs == "" {
				look(t, e, ctrl, device)
			} else {
				filesystem(t, device, v.fs, v.check, func() { rig.Tool(t, "nvme", "reset", ctrl) })
			}
			d.Leave("a", e)
		})
	}
	kernel.ExpectQuiet(t)
}

// filesystem makes one, has something happen to the connection while a file is written,
// and looks at it from a new connection.
func filesystem(t *testing.T, device, kind string, check []string, happens func()) {
	t.Helper()
	rig.Tool(t, "mkfs."+kind, "-q", device)
	dir := rig.Mount(t, device, kind)
	data := rig.RandomBytes(5, 8<<20)
	rig.WriteFile(t, filepath.Join(dir, "before"), data)
	happens()
	rig.WriteFile(t, filepath.Join(dir, "after"), data)
	rig.Unmount(t, dir)
	rig.Tool(t, check[0], append(check[1:], device)...)
	dir = rig.Mount(t, device, kind)
	for _, name := range []string{"before", "after"} {
		rig.Tool(t, "cmp", filepath.Join(dir, "before"), filepath.Join(dir, name))
	}
	rig.Unmount(t, dir)
}

// look has nvme-cli read what there is to read.
func look(t *testing.T, e api.Export, ctrl, device string) {
	t.Helper()
	read := func(into any, args ...string) {
		t.Helper()
		if out := rig.Tool(t, "nvme", append(args, "-o", "json")...); json.Unmarshal([]byte(out), into) != nil {
			t.Errorf("nvme %s: %s", strings.Join(args, " "), out)
		}
	}
	var id struct {
		SN, MN, SubNQN          string
		CMIC, ANATT, VWC, ONCS  int
		CNTLID, MDTS, KAS, OAES int
	}
	read(&id, "id-ctrl", ctrl)
	if strings.TrimSpace(id.SN) != e.Serial || strings.TrimSpace(id.MN) != "swapback "+e.Volume || id.SubNQN != e.NQN ||
		id.CMIC&0xa != 0xa || id.ANATT < 30 || id.VWC&1 == 0 || id.ONCS&0x2c != 0x2c || id.CNTLID == 0 || id.KAS == 0 || id.OAES&0x900 != 0x900 {
		t.Errorf("id-ctrl: %+v", id)
	}
	var ns struct {
		NSZE, NCAP      int64
		NGUID           string
		NMIC, RESCAP    int
		ANAGrpID, FLBAS int
	}
	read(&ns, "id-ns", device)
	if ns.NSZE*512 != e.Size || ns.NCAP != ns.NSZE || ns.NGUID != strings.ReplaceAll(e.UUID, "-", "") || ns.NMIC&1 == 0 || ns.RESCAP == 0 || ns.ANAGrpID == 0 {
		t.Errorf("id-ns: %+v", ns)
	}
	var ana struct {
		Groups []struct {
			State string
			NSIDs []struct{ NSID int }
		} `json:"ANA DESC LIST "`
	}
	read(&ana, "ana-log", ctrl)
	if len(ana.Groups) != 1 || ana.Groups[0].State != "optimized" || len(ana.Groups[0].NSIDs) != 1 || ana.Groups[0].NSIDs[0].NSID != 1 {
		t.Errorf("ana-log: %+v", ana)
	}
	if out := rig.Tool(t, "nvme", "ns-descs", device); !strings.Contains(out, e.UUID) {
		t.Errorf("ns-descs: %s", out)
	}
	reservations(t, e, ctrl, device)
	failures(t, ctrl, device)
	for _, args := range [][]string{{"smart-log", ctrl}, {"effects-log", ctrl}, {"list-ns", ctrl}, {"fw-log", ctrl}} {
		if out := rig.Tool(t, "nvme", args...); strings.Contains(out, "NVMe status") {
			t.Errorf("nvme %s: %s", args[0], out)
		}
	}
}

// reservations has the host register, reserve, look, and lose it to another host, of which
// it finds a notice.
func reservations(t *testing.T, e api.Export, ctrl, device string) {
	t.Helper()
	rig.Tool(t, "nvme", "resv-register", device, "--nrkey=7", "--rrega=0")
	rig.Tool(t, "nvme", "resv-acquire", device, "--crkey=7", "--rtype=3", "--racqa=0")
	var report struct {
		RType, RegCtl int
		Controllers   []struct {
			RCSTS int
			RKey  int64
		} `json:"regctlext"`
	}
	out := rig.Tool(t, "nvme", "resv-report", device, "--eds", "-o", "json")
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.RType != 3 || report.RegCtl != 1 ||
		len(report.Controllers) != 1 || report.Controllers[0].RKey != 7 || report.Controllers[0].RCSTS&1 != 1 {
		t.Errorf("resv-report: %+v, %v\n%s", report, err, out)
	}
	other, err := nvmetest.Connect(nvmetest.Config{Addr: "127.0.0.1:4420", Subsys: e.NQN, Host: rig.NVMeHost, HostID: [16]byte{1}, Queues: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, step := range []struct {
		op wire.Opcode
		r  wire.Reservation
	}{
		{wire.OpResvRegister, wire.Reservation{Other: 8}},
		{wire.OpResvAcquire, wire.Reservation{Action: wire.ResvPreempt, Key: 8, Other: 7, Type: wire.WriteExclusiveRegs}},
		{wire.OpResvRelease, wire.Reservation{Action: wire.ResvClear, Key: 8}},
	} {
		cmd := wire.SQE{NSID: 1}
		data := cmd.SetReservation(step.op, step.r)
		if _, err := other.IO[0].Do(&cmd, data, nil); err != nil {
			t.Fatalf("%+v: %v", step.r, err)
		}
	}
	var notice struct{ Count, RN_Log_Type, Num_Logs, NSID int }
	out = rig.Tool(t, "nvme", "resv-notif-log", ctrl, "-o", "json")
	if err := json.Unmarshal([]byte(out), &notice); err != nil || notice.Count != 1 || notice.RN_Log_Type != 1 || notice.NSID != 1 {
		t.Errorf("resv-notif-log: %+v, %v\n%s", notice, err, out)
	}
}

// failures has a command fail, and looks for it in the log.
func failures(t *testing.T, ctrl, device string) {
	t.Helper()
	// Linux would not ask for what lies behind the end.
	if out, err := exec.Command("nvme", "io-passthru", device, "--opcode=2", "--namespace-id=1", "--cdw10=0xffffffff", "--cdw11=1", "--data-len=512", "--read").CombinedOutput(); err == nil {
		t.Errorf("reading behind the end: %s", out)
	}
	var log struct {
		Errors []struct {
			Count  int64 `json:"error_count"`
			Status int   `json:"status_field"`
			LBA    int64
			NSID   int64
		}
	}
	out := rig.Tool(t, "nvme", "error-log", ctrl, "-o", "json", "-e", "4")
	const outOfRange = 0x80
	if err := json.Unmarshal([]byte(out), &log); err != nil || len(log.Errors) == 0 || log.Errors[0].Status&0xff != outOfRange || log.Errors[0].Count == 0 || log.Errors[0].LBA != 0x1ffffffff {
		t.Errorf("error-log: %+v, %v\n%s", log, err, out)
	}
}
