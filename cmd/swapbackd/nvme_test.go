package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestNVMeFlags: addresses are of numbers and complete, and limits have limits.
func TestNVMeFlags(t *testing.T) {
	parse := func(args ...string) (*nvmeOptions, error) {
		var o options
		cmd := newCommandOf(&o)
		if err := cmd.ParseFlags(args); err != nil {
			return nil, err
		}
		return &o.nvme, o.nvme.check()
	}
	o, err := parse()
	if err != nil || len(o.listen) != 0 {
		t.Errorf("without flags it listens on %q, %v", o.listen, err)
	}
	o, err = parse("--nvme-listen", "192.0.2.1", "--nvme-listen=192.0.2.1:1", "--nvme-listen", "2001:db8::1", "--nvme-listen", "[::]:4421", "--nvme-memory", "64", "--nvme-transfer", "512")
	want := []string{"192.0.2.1:4420", "192.0.2.1:1", "[2001:db8::1]:4420", "[::]:4421"}
	if err != nil || !slices.Equal(o.listen, want) || o.forController().Target.MaxMemory != 64<<20 || o.forController().Target.MaxData != 512<<10 {
		t.Errorf("listens on %q, %v", o.listen, err)
	}
	for _, bad := range []string{
		"--nvme-listen=", "--nvme-listen=localhost", "--nvme-listen=:4420", "--nvme-listen=192.0.2.1:", "--nvme-listen=192.0.2.1:70000",
		"--nvme-connections=0", "--nvme-controllers=0", "--nvme-queues=0", "--nvme-depth=1", "--nvme-depth=1025", "--nvme-memory=1",
		"--nvme-transfer=2", "--nvme-transfer=96", "--nvme-transfer=2048", "--nvme-transfer=-128",
		"--nvme-handshake=0s", "--nvme-handshake=2m",
	} {
		var usage usageError
		if _, err := parse(bad); !errors.As(err, &usage) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestExampleOfDropIn: what the example in dist has the daemon started with it understands.
func TestExampleOfDropIn(t *testing.T) {
	text, err := os.ReadFile("../../dist/systemd/network.conf.example")
	if err != nil {
		t.Fatal(err)
	}
	_, line, found := strings.Cut(strings.ReplaceAll(string(text), "\\\n", ""), "ExecStart=/usr/local/sbin/swapbackd ")
	if !found {
		t.Fatalf("it starts no daemon:\n%s", text)
	}
	var o options
	if err := newCommandOf(&o).ParseFlags(strings.Fields(line)); err != nil {
		t.Error(err)
	}
	if err := o.nvme.check(); err != nil || !slices.Equal(o.nvme.listen, []string{"192.0.2.1:4420"}) {
		t.Errorf("it listens on %q, %v", o.nvme.listen, err)
	}
}
