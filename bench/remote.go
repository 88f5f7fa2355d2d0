package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent/nvmehost"
)

// What another host gets by NVMe/TCP, over the loopback device: a volume, and beside it
// the raw device by the kernel's own target. Both are reached by the kernel's initiator.

const (
	remoteAddress = "127.0.0.1"
	ourPort       = "4420"
	kernelPort    = "4421"
	remoteHost    = "nqn.2014-08.org.nvmexpress:uuid:" + remoteHostID
	remoteHostID  = "5b1d0c6e-7a54-4c0e-9d43-6c6f8f0f3b11"
	kernelUUID    = "0c2f4f0a-57ec-4b8e-8f0e-2f2c4a1c9a77"
	kernelNQN     = "nqn.2014-08.org.nvmexpress:uuid:" + kernelUUID
)

// remoteSubjects are measured instead of the others when asked for; their ratio is to
// the kernel's target with as many queues.
func remoteSubjects() []subject {
	return []subject{
		{name: "nvmet-1", colour: "#e0b25c", about: "the raw device by the kernel's NVMe/TCP target, one I/O queue", remote: true, start: kernelTarget(1)},
		{name: "export-1", colour: "#8e6fc1", about: "swapback's volume by NVMe/TCP, one I/O queue", remote: true, start: exportedVolume(1)},
		{name: "nvmet-4", colour: "#b5852b", about: "the raw device by the kernel's NVMe/TCP target, four I/O queues", remote: true, start: kernelTarget(4)},
		{name: "export-4", colour: "#5c3d99", about: "swapback's volume by NVMe/TCP, four I/O queues", remote: true, start: exportedVolume(4)},
	}
}

// connectHost connects the kernel's initiator, and returns the block device.
func connectHost(ctx context.Context, port, nqn, uuid string, queues int) (device string, disconnect func(context.Context) error, err error) {
	if err := modprobe(ctx, "/sys/module/nvme_tcp", "nvme-tcp"); err != nil {
		return "", nil, err
	}
	_, err = command(ctx, "nvme", "connect", "-t", "tcp", "-a", remoteAddress, "-s", port, "-n", nqn,
		"--nr-io-queues", strconv.Itoa(queues), "--hostnqn", remoteHost, "--hostid", remoteHostID)
	if err != nil {
		return "", nil, fmt.Errorf("%w (nvme is in Debian's package nvme-cli)", err)
	}
	disconnect = func(ctx context.Context) error {
		_, err := command(ctx, "nvme", "disconnect", "-n", nqn)
		return err
	}
	err = retry(ctx, time.Minute, func() error {
		if device = nvmehost.Device(uuid); device == "" {
			return fmt.Errorf("no block device has the UUID %s", uuid)
		}
		_, err := os.Stat(device)
		return err
	})
	if err != nil {
		return "", nil, errors.Join(err, disconnect(ctx))
	}
	return device, disconnect, nil
}

// exportedVolume is the volume as a host has it.
func exportedVolume(queues int) func(context.Context, *stage) (*served, error) {
	return func(ctx context.Context, s *stage) (*served, error) {
		d, err := s.daemon(ctx, "copy", 1, "--nvme-listen", remoteAddress+":"+ourPort)
		if err != nil {
			return nil, err
		}
		v, err := d.client.Volume(ctx, volumeName)
		if err == nil && s.mode == modeExact {
			err = retarget(ctx, s.dm, v.Backend, s.table)
		}
		if err != nil {
			return nil, errors.Join(err, d.stop())
		}
		export, err := d.client.CreateExport(ctx, volumeName, api.ExportRequest{Hosts: []string{remoteHost}})
		if err != nil {
			return nil, errors.Join(err, d.stop())
		}
		end := func(ctx context.Context) error {
			return errors.Join(d.client.DeleteExport(ctx, volumeName, true), d.stop())
		}
		device, disconnect, err := connectHost(ctx, ourPort, export.NQN, export.UUID, queues)
		if err != nil {
			return nil, errors.Join(err, end(ctx))
		}
		return &served{device: device, pids: []int{d.pid()}, ownScheduler: true, stop: func(ctx context.Context) error {
			return errors.Join(disconnect(ctx), end(ctx))
		}}, nil
	}
}

// kernelTarget is the raw device as a host has it of the kernel's own target.
func kernelTarget(queues int) func(context.Context, *stage) (*served, error) {
	return func(ctx context.Context, s *stage) (*served, error) {
		raw, err := rawDevice(ctx, s)
		if err != nil {
			return nil, err
		}
		remove, err := makeKernelTarget(ctx, raw.device)
		if err != nil {
			return nil, errors.Join(err, raw.stop(ctx))
		}
		device, disconnect, err := connectHost(ctx, kernelPort, kernelNQN, kernelUUID, queues)
		if err != nil {
			return nil, errors.Join(err, remove(), raw.stop(ctx))
		}
		return &served{device: device, ownScheduler: true, stop: func(ctx context.Context) error {
			return errors.Join(disconnect(ctx), remove(), raw.stop(ctx))
		}}, nil
	}
}

// makeKernelTarget has nvmet-tcp serve a device (Documentation of nvmetcli; the
// attributes are those of drivers/nvme/target/configfs.c).
func makeKernelTarget(ctx context.Context, device string) (remove func() error, err error) {
	const root = "/sys/kernel/config/nvmet"
	if err := modprobe(ctx, root, "nvmet-tcp"); err != nil {
		return nil, err
	}
	subsys, port := filepath.Join(root, "subsystems", kernelNQN), filepath.Join(root, "ports/4421")
	space, link := filepath.Join(subsys, "namespaces/1"), filepath.Join(port, "subsystems", kernelNQN)
	remove = func() error {
		var errs []error
		for _, path := range []string{link, port, space, subsys} {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("the kernel's NVMe/TCP target: %w", err), remove())
		}
	}()
	for _, dir := range []string{subsys, space, port} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	for _, a := range [][2]string{
		{subsys + "/attr_allow_any_host", "1"},
		{space + "/device_path", device}, {space + "/device_uuid", kernelUUID}, {space + "/enable", "1"},
		{port + "/addr_trtype", "tcp"}, {port + "/addr_adrfam", "ipv4"},
		{port + "/addr_traddr", remoteAddress}, {port + "/addr_trsvcid", kernelPort},
	} {
		if err := os.WriteFile(a[0], []byte(a[1]), 0); err != nil {
			return nil, err
		}
	}
	return remove, os.Symlink(subsys, link)
}
