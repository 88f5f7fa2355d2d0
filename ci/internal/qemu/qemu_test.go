package qemu

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/ci/internal/guestcfg"
)

func TestArgs(t *testing.T) {
	m := Machine{
		Accel: TCG, CPUs: 2, Memory: "4G", Kernel: "/k", Initrd: "/i", Console: "/c",
		Sockets: map[string]string{guestcfg.PortControl: "/s,0", guestcfg.PortStdout: "/s1", guestcfg.PortStderr: "/s2"},
		Disks:   []Disk{{Path: "/d0", Serial: "a", Direct: true, Keep: true}, {Path: "/d1", Serial: "b"}},
		Out:     "/out,put",
	}
	line := strings.Join(m.Args(), " ")
	for _, want := range []string{
		"-accel tcg,thread=multi ",
		"path=/s,,0 ",
		"path=/out,,put,security_model",
		"file=/d0,if=none,id=disk0,format=raw,discard=unmap,cache.direct=on,aio=native -device nvme,serial=a,drive=disk0",
		"file=/d1,if=none,id=disk1,format=raw,discard=unmap,cache.direct=off,aio=threads,cache.no-flush=on -device nvme,serial=b,drive=disk1",
		"readonly=on",
		"-nic none",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in %s", want, line)
		}
	}
	m.Accel = Exact
	if a := m.Args(); !slices.Contains(a, "shift=0,sleep=off") || !slices.Contains(a, "tcg,thread=single") {
		t.Errorf("exact mode: %v", a)
	}
	for _, c := range []struct {
		accel Accel
		cpu   string
		want  string
	}{
		{Exact, "", "-cpu max -smp"}, {Exact, "max,-erms", "-cpu max,-erms -smp"},
		{TCG, "", "-cpu max,-la57,-smap,-smep,-umip -smp"}, {TCG, "qemu64", "-cpu qemu64 -smp"},
		{KVM, "max,-erms", "-cpu host -smp"},
	} {
		m.Accel, m.CPU = c.accel, c.cpu
		if line := strings.Join(m.Args(), " "); !strings.Contains(line, c.want) {
			t.Errorf("%s with the processor %q: no %q in %s", c.accel, c.cpu, c.want, line)
		}
	}
}

func TestNetworkArgs(t *testing.T) {
	m := Machine{}
	if line := strings.Join(m.Args(), " "); strings.Contains(line, "netdev") {
		t.Errorf("a machine that was to have no network: %s", line)
	}
	m.Network = &Network{MAC: "52:54:00:00:00:01"}
	line := strings.Join(m.Args(), " ")
	if want := "-netdev socket,id=net0,fd=3 -device virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:00:00:01"; !strings.Contains(line, want) {
		t.Errorf("no %q in %s", want, line)
	}
}

func TestCable(t *testing.T) {
	a, b, err := Cable()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := a.WriteString("frame"); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if got, err := io.ReadAll(b); string(got) != "frame" || err != nil {
		t.Errorf("the other end: %q, %v", got, err)
	}
}

func TestMakeDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if _, err := MakeDisk(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := MakeDisk(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.HasPrefix(got, []byte("kept")) || len(got) != 1<<20 {
		t.Errorf("an existing disk lost its contents or has a wrong size: %d", len(got))
	}
	if err := BlankDisk(path); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Error("a blank disk is not blank")
	}
	if _, err := MakeDisk(path, 1<<10); err == nil {
		t.Error("a disk was cut")
	}
}

func TestWords(t *testing.T) {
	tests := []struct {
		lines  []string
		status int
		err    error
		end    bool
	}{
		{lines: []string{guestcfg.Ready, guestcfg.Exit + " 7"}, status: 7, end: true},
		{lines: []string{guestcfg.Ready}, end: false},
		{lines: []string{guestcfg.Fail + " no root"}, err: ErrBoot, end: true},
		{lines: []string{guestcfg.Ready, guestcfg.Fail + " no bash"}, err: ErrLost, end: true},
		{lines: []string{"something else"}, end: false},
	}
	for _, tt := range tests {
		r := &Run{Limit: time.Hour, OnReady: func(time.Duration) {}, Notice: t.Logf}
		timer := time.NewTimer(time.Hour)
		ready, end := false, false
		var status int
		var err error
		for _, l := range tt.lines {
			status, err, end = r.word(l, &ready, time.Now(), timer)
		}
		timer.Stop()
		if status != tt.status || !errors.Is(err, tt.err) || end != tt.end {
			t.Errorf("%v: %d, %v, %v", tt.lines, status, err, end)
		}
	}
	r := &Run{}
	if _, err, end := r.word(guestcfg.Exit+" seven", new(bool), time.Now(), nil); err == nil || !end {
		t.Error("a status that is no number was accepted")
	}
}

func TestKVMErrorIsNoticedOnce(t *testing.T) {
	q := &process{trouble: make(chan struct{})}
	for _, s := range []string{"KVM inter", "nal error. Suberror: 1\n", "KVM internal error again\n"} {
		if _, err := q.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-q.trouble:
	default:
		t.Error("not noticed")
	}
}
