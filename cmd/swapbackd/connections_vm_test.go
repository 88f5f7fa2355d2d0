//go:build vm

package main

import (
	"fmt"
	"net"
	"testing"

	"github.com/google/uuid"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
	"github.com/swapback/swapback/soak/rig"
)

// TestConnectionsLeaveNothing: a thousand connections that are dropped at every step of
// becoming a queue, or left there, are gone without a descriptor or much
// memory, and hosts are served meanwhile. (That no goroutine or descriptor is left at all is
// looked for when the test has ended.)
func TestConnectionsLeaveNothing(t *testing.T) {
	d := startExporting(t, "--nvme-handshake", "1s", "--nvme-controllers", "1024")
	d.Pool()
	d.Volume("a", 16*MiB)
	e := d.Export("a")
	device := d.Connect(e, "-i", "1")
	id, err := uuid.Parse("99999999-2222-3333-4444-555555555555")
	if err != nil {
		t.Fatal(err)
	}
	cfg := nvmetest.Config{Addr: "127.0.0.1:4420", Subsys: e.NQN, Host: rig.NVMeHost, HostID: id, Queues: 1}
	const open = "swapback_nvme_connections"
	fds, before, memory := d.CountFDs(), d.Metrics()[open], d.Memory()
	if before != 2 {
		t.Fatalf("a host with one I/O queue has %v connections", before)
	}
	var halves []net.Conn
	for i := range 1000 {
		if err := come(cfg, i%5); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if i%10 == 0 {
			conn, err := net.Dial("tcp", cfg.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(make([]byte, i/10)); err != nil && i/10 < 8 {
				t.Fatal(err)
			}
			halves = append(halves, conn)
		}
	}
	rig.WriteDevice(t, device, 0, rig.RandomBytes(1, 1<<20))
	rig.WaitUntil(t, fmt.Sprintf("%d connections that stay half open to be dropped", len(halves)), func() bool { return d.Metrics()[open] == before })
	// The host's own queue may have got a ring meanwhile. When the host has gone, too, not
	// one descriptor may be left; see the end of the test.
	const ring = 8
	rig.WaitUntil(t, "their descriptors to be closed", func() bool { return d.CountFDs() <= fds+ring })
	rig.ReadDevice(t, device, 0, 1<<20)
	if now := d.Memory(); now > memory+64*MiB {
		t.Errorf("the daemon has %d MiB, and had %d before", now/MiB, memory/MiB)
	}
	if now, err := d.Client.Export(t.Context(), "a"); err != nil || len(now.Connected) != 1 {
		t.Errorf("connected: %+v, %v", now.Connected, err)
	}
	d.Leave("a", e)
}

// come connects, gets to a step, and goes without a word.
func come(cfg nvmetest.Config, step int) error {
	switch step {
	case 0: // nothing said
		conn, err := net.Dial("tcp", cfg.Addr)
		if err != nil {
			return err
		}
		return conn.Close()
	case 1: // half an ICReq
		conn, err := net.Dial("tcp", cfg.Addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		req := make([]byte, wire.ICSize)
		wire.ICReq{}.Put(req)
		_, err = conn.Write(req[:wire.ICSize/2])
		return err
	case 2: // no Connect
		q, err := nvmetest.Dial(cfg.Addr, nvmetest.Options{})
		if err != nil {
			return err
		}
		return q.Conn.Close()
	case 3: // no I/O queue
		cfg.Queues = 0
	}
	c, err := nvmetest.Connect(cfg)
	if err != nil {
		return err
	}
	if step == 4 { // with a command under way
		cmd := nvmetest.IOCommand(wire.OpRead, 1, 0, 8)
		if _, err := c.IO[0].Send(&cmd, nil, make([]byte, 4096)); err != nil {
			return err
		}
	}
	c.Close()
	return nil
}
