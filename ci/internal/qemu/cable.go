package qemu

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Network is a machine's network card and the end of the cable that is in it.
type Network struct {
	// End is one of those that [Cable] returns. The machine inherits it; it stays
	// the caller's to close.
	End *os.File
	MAC string
}

// cableFD is what QEMU knows its end as: the first after the standard streams.
const cableFD = 3

// Cable joins two machines. It is a pair of sockets without a name, so machines
// that run at the same time can't meet, and nothing is left when they have ended.
func Cable() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a cable between two machines: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "cable"), os.NewFile(uintptr(fds[1]), "cable"), nil
}

// args are the card's part of the command line.
func (n *Network) args() []string {
	return []string{
		"-netdev", fmt.Sprintf("socket,id=net0,fd=%d", cableFD),
		"-device", "virtio-net-pci,netdev=net0,romfile=,mac=" + n.MAC,
	}
}
