// Package guestcfg is what the host tells the guest's init, and the words in
// which that init answers. Both sides are built from the same checkout, so the
// encoding has no version: it never outlives one boot.
package guestcfg

// File is where the configuration lies in the initramfs.
const File = "/swapback.json"

// Names of the virtio-serial ports between host and guest. Standard output and
// standard error travel on ports of their own, so that neither the kernel's
// console nor the other stream can get between their bytes.
const (
	PortControl = "swapback.control"
	PortStdout  = "swapback.stdout"
	PortStderr  = "swapback.stderr"
)

// Words on the control port, one line each.
const (
	// Ready: the command is about to start. Before this line a boot may be
	// tried again; after it, it may not.
	Ready = "ready"
	// Exit is followed by the command's exit status; 128+N for signal N.
	Exit = "exit"
	// Fail is followed by the reason why the command could not be run.
	Fail = "fail"
	// Note is followed by a sentence for the person at the terminal.
	Note = "note"
)

// Mount tags of the 9p shares.
const (
	TagRoot = "swapback-root"
	TagOut  = "swapback-out"
)

// Config is everything the guest's init needs to know.
type Config struct {
	// Command is run by bash -c, in Dir, with Env and nothing else.
	Command string
	Dir     string
	Env     []string

	// Early modules are in the initramfs, in the order in which to insert
	// them: enough to mount the host's root.
	Early []Module
	// Late modules are read from the host's root.
	Late []Module
	// ModuleTree is the folder on the host that holds lib/modules/RELEASE;
	// it becomes /lib/modules/RELEASE in the guest, so that modprobe and the
	// kernel's own module requests find everything else.
	ModuleTree string
	Release    string

	// Shown are folders of the host that must be seen in their places even if
	// those are below /tmp, /run or /mnt, which are the guest's own.
	Shown []string

	// Disks is how many NVMe namespaces must be there before the command starts.
	Disks int
	// Out says that a writable share is to be mounted on /out.
	Out bool
	// Host is what the machine is called.
	Host string
	// Address is that of the machine's network card, which then has to be there,
	// with the number of bits that the network has in it (192.0.2.1/24); empty for none.
	Address string
}

// Module is one kernel module file.
type Module struct {
	Path string
	// Args are module parameters, as they would stand on modprobe's command line.
	Args string
}
