package nvmehost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// Subsystem is what is to be connected.
type Subsystem struct {
	NQN  string
	UUID string // of the namespace that is waited for
	// Like are connections to the same daemon, whose way, names and secrets are used; without
	// one this machine's own names are, and Addresses (IP:PORT).
	Like      []Controller
	Addresses []string
}

// Connection is one that Connect has made.
type Connection struct {
	Device string
	host   Host
	name   string // of the controller
}

// Connect connects a subsystem, by the first of its ways that works, and returns when its
// device is there. A connection that is there already is the error [ErrConnected].
func (h Host) Connect(ctx context.Context, s Subsystem) (*Connection, error) {
	ways, err := h.ways(s)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", s.NQN, err)
	}
	var errs []error
	for _, options := range ways {
		name, err := h.write(options)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c := &Connection{host: h, name: name}
		if c.Device, err = h.Wait(ctx, s.UUID); err != nil {
			return nil, errors.Join(fmt.Errorf("connect %s: connected as %s, but its disk does not appear: %w", s.NQN, name, err), c.Close())
		}
		return c, nil
	}
	return nil, fmt.Errorf("connect %s: %w", s.NQN, errors.Join(errs...))
}

// ErrConnected: somebody has connected it already, by the same way and names.
var ErrConnected = errors.New("it is connected already")

// ways are the lines of options to try. None of what they are made of may end an option, or
// begin another.
func (h Host) ways(s Subsystem) ([]string, error) {
	var ways []string
	add := func(transport, address, port, nqn, id, secret, theirs string) error {
		options := [][2]string{
			{"transport", transport}, {"traddr", address}, {"trsvcid", port}, {"nqn", s.NQN},
			{"hostnqn", nqn}, {"hostid", id}, {"dhchap_secret", secret}, {"dhchap_ctrl_secret", theirs},
		}
		var line []string
		for _, o := range options {
			if o[1] == "" {
				continue
			}
			if strings.ContainsAny(o[1], ",\n\x00") {
				return fmt.Errorf("%s %.80q can't be an option", o[0], o[1])
			}
			line = append(line, o[0]+"="+o[1])
		}
		ways = append(ways, strings.Join(line, ","))
		return nil
	}
	for _, c := range s.Like {
		if err := add(c.Transport, c.Address, c.Port, c.HostNQN, c.HostID, c.secret, c.theirs); err != nil {
			return nil, err
		}
	}
	if len(ways) > 0 {
		return ways, nil
	}
	nqn, id, err := h.Identity()
	if err != nil {
		return nil, err
	}
	secret, theirs, err := h.secrets()
	if err != nil {
		return nil, err
	}
	for _, a := range s.Addresses {
		address, port, err := net.SplitHostPort(a)
		if err == nil {
			err = add("tcp", address, port, nqn, id, secret, theirs)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(ways) == 0 {
		return nil, errors.New("no address of it is known")
	}
	return ways, nil
}

var instance = regexp.MustCompile(`^instance=(\d+),`)

// write has the kernel make a controller (nvmf_dev_write in its drivers/nvme/host/fabrics.c),
// and returns its name. What it does not say is not said: the line may have a secret in it.
func (h Host) write(options string) (string, error) {
	path := h.dev("nvme-fabrics")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the kernel is not an NVMe/TCP host: modprobe nvme-tcp (%w)", err)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = unix.Write(int(f.Fd()), []byte(options))
	if errors.Is(err, unix.EALREADY) {
		return "", ErrConnected
	}
	if err != nil {
		return "", fmt.Errorf("the kernel could not connect (its log says why): %w", err)
	}
	answer := make([]byte, 256)
	n, err := unix.Read(int(f.Fd()), answer)
	if err != nil {
		return "", fmt.Errorf("reading which controller the kernel has made: %w", err)
	}
	m := instance.FindSubmatch(answer[:n])
	if m == nil {
		return "", fmt.Errorf("the kernel has made a controller and says %.80q", answer[:n])
	}
	return "nvme" + string(m[1]), nil
}

// Close ends the connection, and returns when its disk is gone. The disk must not be in use
// any more.
func (c *Connection) Close() error {
	err := os.WriteFile(c.host.sys("class/nvme", c.name, "delete_controller"), []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("disconnect %s: %w", c.name, err)
	}
	return nil
}
