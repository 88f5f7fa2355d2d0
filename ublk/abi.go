package ublk

import (
	"structs"
	"unsafe"
)

// Every structure and number in this file is that of
// include/uapi/linux/ublk_cmd.h (read from kernel 7.3; all of it but what is
// marked exists in 6.12).

// ctrlCmd is struct ublksrv_ctrl_cmd: the payload of a control command, in the
// second half of a 128-byte SQE.
type ctrlCmd struct {
	_          structs.HostLayout
	DevID      uint32
	QueueID    uint16 // 0xffff: not for a queue
	Len        uint16 // of the buffer at Addr
	Addr       uint64
	Data       uint64 // data[0]
	DevPathLen uint16
	Pad        uint16
	Reserved   uint32
}

// devInfo is struct ublksrv_ctrl_dev_info.
type devInfo struct {
	_             structs.HostLayout
	NrHWQueues    uint16
	QueueDepth    uint16
	State         uint16
	IODescSize    uint16 // 7.3; zero before
	MaxIOBufBytes uint32
	DevID         uint32
	UblksrvPID    int32
	Pad1          uint32
	Flags         uint64
	UblksrvFlags  uint64 // the server's own; the driver only keeps it
	OwnerUID      uint32
	OwnerGID      uint32
	Reserved1     uint64
	Reserved2     uint64
}

// ioDesc is struct ublksrv_io_desc: one request, in memory shared with the
// driver, read-only here.
type ioDesc struct {
	_           structs.HostLayout
	OpFlags     uint32 // op in bits 0-7
	NrSectors   uint32
	StartSector uint64 // of 512 bytes, whatever the block size
	Addr        uint64
}

// ioCmd is struct ublksrv_io_cmd: the payload of FETCH and COMMIT_AND_FETCH, in
// the last 16 bytes of a 64-byte SQE.
type ioCmd struct {
	_      structs.HostLayout
	QID    uint16
	Tag    uint16
	Result int32
	Addr   uint64 // buffer that the driver copies to and from
}

// paramBasic is struct ublk_param_basic.
type paramBasic struct {
	_               structs.HostLayout
	Attrs           uint32
	LogicalBSShift  uint8
	PhysicalBSShift uint8
	IOOptShift      uint8
	IOMinShift      uint8
	MaxSectors      uint32
	ChunkSectors    uint32
	DevSectors      uint64
	VirtBoundary    uint64
}

// paramDiscard is struct ublk_param_discard.
type paramDiscard struct {
	_                     structs.HostLayout
	DiscardAlignment      uint32
	DiscardGranularity    uint32
	MaxDiscardSectors     uint32
	MaxWriteZeroesSectors uint32
	MaxDiscardSegments    uint16
	Reserved0             uint16
}

// paramDevt is struct ublk_param_devt, filled by the driver.
type paramDevt struct {
	_         structs.HostLayout
	CharMajor uint32
	CharMinor uint32
	DiskMajor uint32
	DiskMinor uint32
}

// params is struct ublk_params up to devt. The structure goes on (zoned,
// dma_align, segment, integrity); the driver takes any length and fills no
// more than it is given.
type params struct {
	_       structs.HostLayout
	Len     uint32
	Types   uint32
	Basic   paramBasic
	Discard paramDiscard
	Devt    paramDevt
}

// paramsLen is the length of params in C; Go rounds the size up to 8.
const paramsLen = 76

// Control commands: _IOR or _IOWR('u', nr, struct ublksrv_ctrl_cmd).
const (
	cmdGetQueueAffinity  = 0x80207501
	cmdGetDevInfo        = 0x80207502
	cmdAddDev            = 0xc0207504
	cmdDelDev            = 0xc0207505
	cmdStartDev          = 0xc0207506
	cmdStopDev           = 0xc0207507
	cmdSetParams         = 0xc0207508
	cmdGetParams         = 0x80207509
	cmdStartUserRecovery = 0xc0207510
	cmdEndUserRecovery   = 0xc0207511
	cmdGetDevInfo2       = 0x80207512
	cmdGetFeatures       = 0x80207513
	cmdDelDevAsync       = 0x80207514
	cmdUpdateSize        = 0xc0207515 // 6.16
	cmdQuiesceDev        = 0xc0207516 // 6.16
	cmdTryStopDev        = 0xc0207517 // 7.0
)

// I/O commands: _IOWR('u', nr, struct ublksrv_io_cmd).
const (
	ioFetchReq          = 0xc0107520
	ioCommitAndFetchReq = 0xc0107521
)

const (
	ioResOK = 0

	ioFlagFUA     = 1 << 13
	ioFlagNoUnmap = 1 << 15

	attrReadOnly      = 1 << 0
	attrRotational    = 1 << 1
	attrVolatileCache = 1 << 2
	attrFUA           = 1 << 3

	paramTypeBasic   = 1 << 0
	paramTypeDiscard = 1 << 1
	paramTypeDevt    = 1 << 2

	maxQueueDepth = 4096
)

// descOffset is where the descriptors of queue q start in the char device's
// mapping. The stride is made for the greatest depth, whatever the device's
// own (ublk_queue_cmd_buf_size in drivers/block/ublk_drv.c).
func descOffset(q, page int) int64 {
	return int64(q) * int64(roundUp(maxQueueDepth*int(unsafe.Sizeof(ioDesc{})), page))
}

// descLength is how much of it a queue of this depth maps.
func descLength(depth, page int) int {
	return roundUp(depth*int(unsafe.Sizeof(ioDesc{})), page)
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }
