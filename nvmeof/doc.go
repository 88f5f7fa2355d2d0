// Package nvmeof is an NVMe/TCP target: it serves files, block devices and Handlers
// to hosts as namespaces, from userspace. It knows nothing of pools and volumes.
//
//	target, err := nvmeof.New(nvmeof.Options{})
//	subsystem, err := target.AddSubsystem(nvmeof.SubsystemConfig{NQN: "nqn.2026-01.org.example:disks", Hosts: hosts})
//	backend, err := nvmeof.OpenBackend("/dev/mapper/disk", nvmeof.Limits{})
//	namespace, err := subsystem.AddNamespace(nvmeof.NamespaceConfig{Backend: backend, UUID: uuid})
//	listener, err := net.Listen("tcp", "192.0.2.1:4420")
//	err = target.Serve(listener)
//
// # Who owns what
//
// A Target has subsystems and connections, a Subsystem has namespaces and
// controllers, a controller has queues. A connection is a queue; it has a goroutine
// that does everything, and everything that it needs. Backends belong to the caller,
// who closes them when the namespace is removed or the target closed, without an
// error.
//
// # The way of one command
//
//	bytes arrive
//	  -> PDU: its header checked, its data taken straight to where it belongs
//	  -> namespace, gate, change map
//	  -> Handler: done; the answer lies behind those before it
//	     file: an entry in the ring; the answer when that completes
//	input is empty, or the output full
//	  -> all answers are sent by one system call
//
// Every connection begins on Go's network poller (pollLoop). An I/O queue that meets a
// namespace with a file goes on with a ring of its own on a thread of its own
// (ringLoop): one io_uring_enter submits
// what the disk is to do, what the host is to get and the wish for more, and waits for
// whichever comes first. Where there can be no ring the poller goes on, and files are
// served by system calls that wait.
//
// Small data of a read is put behind its header by whoever has it; from 8 KiB on it is
// gathered from where it lies. Data of a write goes to a buffer of its command, which
// each has: nothing ever waits for a buffer, and a queue's memory is bounded by
// QueueDepth times MaxData, of which as much is used as commands have filled. There is
// no allocation per command.
//
// # The gate
//
// Every namespace has a gate. Hold keeps commands, Refuse answers that they be tried
// again, Release lets them go; Drain waits until none is in flight. The comment on type
// gate says why none slips through. Admin commands never look at a gate, and a
// controller's admin queue is another connection: Keep Alive, Identify and log pages
// are answered during the longest pause.
//
// A held command is answered with Namespace Not Ready after HoldFor, which is shorter
// than the patience of hosts; it names a retry delay and never says "do not retry". For
// pauses that are known to be long there is SetANA: the log changes first, then the
// hosts that have read it, before they had I/O queues, get statuses of asymmetric access, and others are held. For what
// those can't stand there is TurnAway.
//
// # The change map
//
// Behind the gate whoever wants to know hears of what a command is about to change
// (Changes). It may say "not yet", as when that has to be on a disk first: the command is
// parked, in flight for nobody, and goes to the gate again when the map has woken its queue.
//
// # Reservations
//
// Package reserve keeps them, one Disk for each disk, whichever subsystems it is in.
// Every command asks it, behind the gate. Preempt and Abort is answered when the queues of
// all other hosts have carried out what had arrived on them. Hosts whose reservation or
// registration another host has ended find a notice in a log of each of their controllers.
//
// # The end of things
//
// A controller ends with its admin queue: when the host closes it, when Keep Alive
// expires (at twice its time), when the host is taken off the list. Its I/O queues hang
// up; each waits for what it has at a disk. A controller that is reset stays ready until
// its I/O queues are gone.
//
// A host that has lost a connection repeats its commands on a new one. A write that
// lies unread on the old connection must not be carried out after that: the next
// controller of the same host is only connected when every queue of the host's others
// has carried out all that had arrived, or has hung up. What is held or parked is dropped
// with its connection; a queue that still has some after five seconds hangs up.
//
// A process that is killed leaves what it had at a disk in flight. Whoever serves the disk
// next has to wait for that before he listens; this package can't.
//
// # Errors
//
// What breaks the rules of the transport (TCP 3.5) is answered with a TermReq that says
// which, and ends the connection. What is wrong with a command is its status, and is in
// the error log. "Do not retry" is said of what cannot be otherwise next time, never of
// what may pass.
//
// # Who may enter
//
// A subsystem has a list of hosts; others are refused, and do not see it in a discovery log.
// A name is only a word: with SubsystemConfig.Authenticate a host has to prove on every queue
// that it knows a secret (package auth), and gets nothing before. It may do so again on a
// queue that is in use, with the secret that holds by then: other commands go on meanwhile,
// and the queue ends when it fails or is not through with it in time.
//
// # Limits
//
// Connections, controllers, queues, their depth and data are bounded (Options). A
// connection that does not become a queue in time is closed, as is one that leaves a PDU
// unfinished or does not take its answers. A host that sends commands and takes no
// answers is not read from any more.
//
// # Locks
//
// A queue takes none for a command that succeeds. Target.mu, Subsystem.mu,
// controller.mu, gate.mu, fence.mu and queue.waking are each held for a few lines, with
// no other taken meanwhile.
//
// # Go's scheduler
//
// The thread of a queue with a ring blocks in a system call of which the scheduler has to
// be told, unless the program has reserved processors for such waits (ReserveProcs).
//
// # What is not here
//
// TLS; Namespace Management and Format, which are the owner's to do; fused commands; metadata.
package nvmeof
