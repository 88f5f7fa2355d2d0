package main

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/spf13/pflag"

	"github.com/swapback/swapback/nvmeof"
	"github.com/swapback/swapback/volume"
)

// nvmePort is the port of NVMe/TCP, unless another one is given (IANA).
const nvmePort = "4420"

// nvmeOptions are the flags of the door for other hosts.
type nvmeOptions struct {
	listen      []string
	secrets     string
	connections int
	controllers int
	queues      int
	depth       int
	transfer    int // KiB
	memory      int // MiB
	handshake   time.Duration
}

func (o *nvmeOptions) flags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.listen, "nvme-listen", nil, "address (IP or IP:PORT, port "+nvmePort+") on which other hosts reach exported volumes by NVMe/TCP; repeatable (default: nowhere)")
	f.StringVar(&o.secrets, "nvme-secrets", "", "file of the hosts' DH-HMAC-CHAP secrets, of mode 0600: lines of HOST-NQN SECRET [SECRET-OF-OURS] (default: none)")
	f.IntVar(&o.connections, "nvme-connections", 1024, "connections of NVMe hosts at once, each of which is a queue")
	f.IntVar(&o.controllers, "nvme-controllers", 64, "controllers of NVMe hosts at once for each volume")
	f.IntVar(&o.queues, "nvme-queues", 16, "I/O queues for each controller of an NVMe host")
	f.IntVar(&o.depth, "nvme-depth", 128, "commands in flight on a queue of an NVMe host, 2 to 1024")
	f.IntVar(&o.transfer, "nvme-transfer", 128, "most KiB that a command of an NVMe host carries, a power of two from 4 to 1024; each queue reserves --nvme-depth times as much address space")
	f.IntVar(&o.memory, "nvme-memory", 4096, "MiB of address space for the buffers of all NVMe hosts")
	f.DurationVar(&o.handshake, "nvme-handshake", 10*time.Second, "how long an NVMe host may take to connect and to authenticate")
}

func (o *nvmeOptions) check() error {
	for i, text := range o.listen {
		addr, err := nvmeAddress(text)
		if err != nil {
			return usageError{err}
		}
		o.listen[i] = addr
	}
	for _, n := range []struct {
		flag              string
		value, least, top int
	}{
		{"nvme-connections", o.connections, 1, 1 << 16},
		{"nvme-controllers", o.controllers, 1, 1 << 15},
		{"nvme-queues", o.queues, 1, 1024},
		{"nvme-depth", o.depth, 2, 1024},
		{"nvme-memory", o.memory, 64, 1 << 24},
	} {
		if n.value < n.least || n.value > n.top {
			return usageError{fmt.Errorf("--%s=%d: want %d to %d", n.flag, n.value, n.least, n.top)}
		}
	}
	if n := o.transfer; n < 4 || n > 1024 || n&(n-1) != 0 {
		return usageError{fmt.Errorf("--nvme-transfer=%d: want a power of two from 4 to 1024", n)}
	}
	if o.handshake < time.Second || o.handshake > time.Minute {
		return usageError{fmt.Errorf("--nvme-handshake=%s: want 1s to 1m", o.handshake)}
	}
	return nil
}

// nvmeAddress reads IP or IP:PORT. A name would be another address one day.
func nvmeAddress(text string) (string, error) {
	if ip, err := netip.ParseAddr(text); err == nil {
		return net.JoinHostPort(ip.String(), nvmePort), nil
	}
	addr, err := netip.ParseAddrPort(text)
	if err != nil {
		return "", fmt.Errorf("--nvme-listen=%s: want an IP address, such as 192.0.2.1, 192.0.2.1:4420 or [2001:db8::1]:4420", text)
	}
	return addr.String(), nil
}

func (o *nvmeOptions) forController() volume.NVMe {
	return volume.NVMe{Listen: o.listen, Secrets: o.secrets, Target: nvmeof.Options{
		MaxConnections: o.connections, MaxControllers: o.controllers, MaxQueues: o.queues, QueueDepth: o.depth,
		MaxData: o.transfer << 10, MaxMemory: int64(o.memory) << 20, Handshake: o.handshake,
	}}
}
