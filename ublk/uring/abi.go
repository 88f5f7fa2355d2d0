package uring

import "structs"

// Every structure and number in this file is that of include/uapi/linux/io_uring.h.

// SQE is struct io_uring_sqe: one submission, 64 bytes. The unions of the C
// structure are flattened to the members used here; their comments say which.
type SQE struct {
	_           structs.HostLayout
	Opcode      uint8
	Flags       uint8 // SQEFixedFile and friends
	IOPrio      uint16
	FD          int32  // descriptor, or index into the registered files
	Off         uint64 // union: off, addr2, cmd_op (low 32 bits)
	Addr        uint64 // union: addr
	Len         uint32
	OpFlags     uint32 // union: rw_flags, fsync_flags, msg_ring_flags, uring_cmd_flags, ...
	UserData    uint64 // comes back in the CQE
	BufIndex    uint16
	Personality uint16
	FileIndex   uint32   // union: splice_fd_in, file_index
	Cmd         [16]byte // union: addr3 + pad; first 16 bytes of a command's payload
}

// SQE128 is the submission of a ring set up with SetupSQE128: the payload of a
// command may be 80 bytes, Cmd of SQE followed by Rest.
type SQE128 struct {
	_ structs.HostLayout
	SQE
	Rest [64]byte
}

// CQE is struct io_uring_cqe: one completion, 16 bytes.
type CQE struct {
	_        structs.HostLayout
	UserData uint64
	Res      int32 // negative errno, or the operation's result
	Flags    uint32
}

// sqOffsets is struct io_sqring_offsets.
type sqOffsets struct {
	_           structs.HostLayout
	Head        uint32
	Tail        uint32
	RingMask    uint32
	RingEntries uint32
	Flags       uint32
	Dropped     uint32
	Array       uint32
	Resv1       uint32
	UserAddr    uint64
}

// cqOffsets is struct io_cqring_offsets.
type cqOffsets struct {
	_           structs.HostLayout
	Head        uint32
	Tail        uint32
	RingMask    uint32
	RingEntries uint32
	Overflow    uint32
	CQEs        uint32
	Flags       uint32
	Resv1       uint32
	UserAddr    uint64
}

// params is struct io_uring_params.
type params struct {
	_            structs.HostLayout
	SQEntries    uint32
	CQEntries    uint32
	Flags        uint32
	SQThreadCPU  uint32
	SQThreadIdle uint32
	Features     uint32
	WQFD         uint32
	Resv         [3]uint32
	SQOff        sqOffsets
	CQOff        cqOffsets
}

// getEventsArg is struct io_uring_getevents_arg, for enterExtArg.
type getEventsArg struct {
	_           structs.HostLayout
	Sigmask     uint64
	SigmaskSize uint32
	MinWaitUsec uint32
	TS          uint64 // struct __kernel_timespec *
}

// rsrcRegister is struct io_uring_rsrc_register.
type rsrcRegister struct {
	_     structs.HostLayout
	Nr    uint32
	Flags uint32
	Resv2 uint64
	Data  uint64
	Tags  uint64
}

// rsrcUpdate is struct io_uring_rsrc_update.
type rsrcUpdate struct {
	_      structs.HostLayout
	Offset uint32
	Resv   uint32
	Data   uint64
}

// bufReg is struct io_uring_buf_reg.
type bufReg struct {
	_           structs.HostLayout
	RingAddr    uint64
	RingEntries uint32
	BGID        uint16
	Flags       uint16
	MinLeft     uint32
	Resv0       uint32
	Resv        [2]uint64
}

// buf is struct io_uring_buf: one entry of a ring of provided buffers. In the
// first one the kernel's struct io_uring_buf_ring keeps the ring's tail where
// the others have Resv.
type buf struct {
	_    structs.HostLayout
	Addr uint64
	Len  uint32
	BID  uint16
	Resv uint16
}

// filesUpdate is struct io_uring_files_update.
type filesUpdate struct {
	_      structs.HostLayout
	Offset uint32
	Resv   uint32
	FDs    uint64 // __s32 *
}

// IORING_OP_ opcodes.
const (
	opNop        = 0
	opFsync      = 3
	opReadFixed  = 4
	opWriteFixed = 5
	opSendMsg    = 9
	opFallocate  = 17
	opRead       = 22
	opWrite      = 23
	opRecv       = 27
	opMsgRing    = 40
	opURingCmd   = 46
)

// IOSQE_ flags.
const (
	SQEFixedFile      uint8 = 1 << 0 // FD is an index into the registered files
	SQEAsync          uint8 = 1 << 4 // run from a worker thread, where it may block
	SQEBufferSelect   uint8 = 1 << 5 // take a buffer from the group in BufIndex
	SQECQESkipSuccess uint8 = 1 << 6 // complete without a word, unless it fails
)

// IORING_CQE_F_ flags of a completion.
const (
	CQEBuffer uint32 = 1 << 0 // the upper 16 bits are the number of a provided buffer
	CQEMore   uint32 = 1 << 1 // the submission goes on and will complete again
)

// URingCmdMultishot is IORING_URING_CMD_MULTISHOT, for OpFlags of a command.
const URingCmdMultishot = 1 << 1

// SetupFlags are IORING_SETUP_ flags.
type SetupFlags uint32

// Flags for New.
const (
	SetupCQSize       SetupFlags = 1 << 3
	SetupClamp        SetupFlags = 1 << 4
	SetupSubmitAll    SetupFlags = 1 << 7  // 5.18
	SetupCoopTaskrun  SetupFlags = 1 << 8  // 5.19
	SetupSQE128       SetupFlags = 1 << 10 // 5.19
	SetupSingleIssuer SetupFlags = 1 << 12 // 6.0
	SetupDeferTaskrun SetupFlags = 1 << 13 // 6.1
	SetupNoSQArray    SetupFlags = 1 << 16 // 6.6
)

const (
	offSQRing = 0
	offCQRing = 0x8000000
	offSQEs   = 0x10000000

	featSingleMmap = 1 << 0
	featNoDrop     = 1 << 1
	featExtArg     = 1 << 8

	enterGetEvents      = 1 << 0
	enterExtArg         = 1 << 3
	enterRegisteredRing = 1 << 4

	registerBuffers     = 0
	registerFiles       = 2
	registerFilesUpdate = 6
	registerBuffers2    = 15
	registerRingFDs     = 20
	registerPbufRing    = 22

	rsrcSparse = 1 << 0

	// FsyncDatasync is IORING_FSYNC_DATASYNC.
	FsyncDatasync = 1 << 0
)
