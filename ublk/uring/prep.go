package uring

import "unsafe"

// The Prep methods fill an entry from NextSQE. They set the operation's own
// fields only; add Flags (SQEFixedFile, SQEAsync) and UserData afterwards.
// Addresses are plain numbers: the memory behind them must not be Go heap
// memory, or be pinned, until the completion has come.

// PrepNop does nothing and completes.
func (s *SQE) PrepNop() {
	s.Opcode = opNop
	s.FD = -1
}

// PrepRead reads n bytes at off into addr; n bytes at the file's own position,
// or from something without positions such as an eventfd, with off ^0.
func (s *SQE) PrepRead(fd int32, addr uintptr, n uint32, off uint64) {
	s.rw(opRead, fd, addr, n, off)
}

// PrepWrite writes n bytes from addr at off, with RWF_ flags.
func (s *SQE) PrepWrite(fd int32, addr uintptr, n uint32, off uint64, rwFlags uint32) {
	s.rw(opWrite, fd, addr, n, off)
	s.OpFlags = rwFlags
}

// PrepReadFixed is PrepRead into registered buffer buf, which addr lies in.
func (s *SQE) PrepReadFixed(fd int32, addr uintptr, n uint32, off uint64, buf uint16) {
	s.rw(opReadFixed, fd, addr, n, off)
	s.BufIndex = buf
}

// PrepWriteFixed is PrepWrite from registered buffer buf, which addr lies in.
func (s *SQE) PrepWriteFixed(fd int32, addr uintptr, n uint32, off uint64, buf uint16, rwFlags uint32) {
	s.rw(opWriteFixed, fd, addr, n, off)
	s.BufIndex = buf
	s.OpFlags = rwFlags
}

func (s *SQE) rw(op uint8, fd int32, addr uintptr, n uint32, off uint64) {
	s.Opcode = op
	s.FD = fd
	s.Addr = uint64(addr)
	s.Len = n
	s.Off = off
}

// PrepRecv receives up to n bytes from a socket into addr. With wait it does not
// try at once, which is right where nothing is expected to be there yet.
func (s *SQE) PrepRecv(fd int32, addr uintptr, n uint32, wait bool) {
	const pollFirst = 1 << 0 // IORING_RECVSEND_POLL_FIRST (kernel 5.19)
	s.rw(opRecv, fd, addr, n, 0)
	if wait {
		s.IOPrio = pollFirst
	}
}

// PrepSendMsg sends what the struct msghdr at addr gathers, with MSG_ flags. With
// MSG_WAITALL a short result is rare; one without is common. The header and its
// vector are read when the entry is submitted, the data until it completes.
func (s *SQE) PrepSendMsg(fd int32, msghdr uintptr, flags uint32) {
	s.rw(opSendMsg, fd, msghdr, 1, 0)
	s.OpFlags = flags
}

// PrepFsync flushes the file; flags 0 or FsyncDatasync.
func (s *SQE) PrepFsync(fd int32, flags uint32) {
	s.Opcode = opFsync
	s.FD = fd
	s.OpFlags = flags
}

// PrepFallocate is fallocate(2) of n bytes at off. IORING_OP_FALLOCATE takes
// the length in addr and the mode in len.
func (s *SQE) PrepFallocate(fd int32, mode uint32, off, n uint64) {
	s.Opcode = opFallocate
	s.FD = fd
	s.Off = off
	s.Addr = n
	s.Len = mode
}

// PrepCmd is a command of the file's own (IORING_OP_URING_CMD); the payload
// goes to Cmd.
func (s *SQE) PrepCmd(fd int32, op uint32) {
	s.Opcode = opURingCmd
	s.FD = fd
	s.Off = uint64(op)
}

// PrepCmdMultishot is PrepCmd for a command that completes again and again, each
// time into a buffer of the group (kernel 6.18 and later).
func (s *SQE) PrepCmdMultishot(fd int32, op uint32, group uint16) {
	s.PrepCmd(fd, op)
	s.OpFlags = URingCmdMultishot
	s.BufIndex = group
	s.Flags = SQEBufferSelect
}

// PrepBlockDiscard is BLOCK_URING_CMD_DISCARD of n bytes at off (linux/blkdev.h,
// kernel 6.12): the range travels in addr and addr3.
func (s *SQE) PrepBlockDiscard(fd int32, off, n uint64) {
	const blockURingCmdDiscard = 0x12 << 8 // _IO(0x12, 0)
	s.PrepCmd(fd, blockURingCmdDiscard)
	s.Addr = off
	*(*uint64)(unsafe.Pointer(&s.Cmd[0])) = n
}

// PrepMsgRing posts a completion with this userData and result on the ring
// whose descriptor is fd (kernel 5.18).
func (s *SQE) PrepMsgRing(fd int32, result uint32, userData uint64) {
	s.Opcode = opMsgRing
	s.FD = fd
	s.Len = result
	s.Off = userData
}
