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

// paramZoned is struct ublk_param_zoned, which nothing here uses.
type paramZoned struct {
	_                    structs.HostLayout
	MaxOpenZones         uint32
	MaxActiveZones       uint32
	MaxZoneAppendSectors uint32
	Reserved             [20]byte
}

// paramDMAAlign is struct ublk_param_dma_align (6.15).
type paramDMAAlign struct {
	_         structs.HostLayout
	Alignment uint32 // a mask: alignment minus one
	Pad       [4]byte
}

// paramSegment is struct ublk_param_segment (6.15).
type paramSegment struct {
	_               structs.HostLayout
	SegBoundaryMask uint64
	MaxSegmentSize  uint32
	MaxSegments     uint16
	Pad             [2]byte
}

// params is struct ublk_params up to seg. The structure goes on (integrity);
// the driver takes any length, ignores what it does not know and fills no more
// than it is given.
type params struct {
	_       structs.HostLayout
	Len     uint32
	Types   uint32
	Basic   paramBasic
	Discard paramDiscard
	Devt    paramDevt
	Zoned   paramZoned
	DMA     paramDMAAlign
	_       [4]byte // Seg has a 64-bit member
	Seg     paramSegment
}

const paramsLen = 136

// batchIO is struct ublk_batch_io (7.0): the payload of the batch commands, in
// the last 16 bytes of a 64-byte SQE.
type batchIO struct {
	_         structs.HostLayout
	QID       uint16
	Flags     uint16
	NrElem    uint16
	ElemBytes uint8
	Reserved  uint8
	Reserved2 uint64
}

// batchElem is struct ublk_elem_header (7.0): one tag of a PREP or COMMIT.
type batchElem struct {
	_        structs.HostLayout
	Tag      uint16
	BufIndex uint16
	Result   int32
}

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
	ioRegisterIOBuf     = 0xc0107523 // 6.15
	ioUnregisterIOBuf   = 0xc0107524 // 6.15
)

// Batch commands: _IOWR('u', nr, struct ublk_batch_io), kernel 7.0.
const (
	ioPrepIOCmds   = 0xc0107525
	ioCommitIOCmds = 0xc0107526
	ioFetchIOCmds  = 0xc0107527
)

const (
	ioResOK = 0

	ioFlagFUA        = 1 << 13
	ioFlagNoUnmap    = 1 << 15
	ioFlagNeedRegBuf = 1 << 17 // the request's buffer is not registered: AUTO_BUF_REG failed

	autoBufRegFallback = 1 << 0 // UBLK_AUTO_BUF_REG_FALLBACK

	batchAutoBufRegFallback = 1 << 2 // UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK

	attrReadOnly      = 1 << 0
	attrRotational    = 1 << 1
	attrVolatileCache = 1 << 2
	attrFUA           = 1 << 3

	paramTypeBasic    = 1 << 0
	paramTypeDiscard  = 1 << 1
	paramTypeDevt     = 1 << 2
	paramTypeDMAAlign = 1 << 4
	paramTypeSegment  = 1 << 5

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

// autoBufReg packs struct ublk_auto_buf_reg as it travels in an SQE's addr
// (ublk_auto_buf_reg_to_sqe_addr in the header).
func autoBufReg(index uint16, flags uint8) uint64 { return uint64(index) | uint64(flags)<<16 }
