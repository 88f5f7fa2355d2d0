package ublk

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
	"unsafe"
)

func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// Every byte of every field has a value of its own; the dumps show where the C
// structures have them. Offsets were read with offsetof from the header of
// kernel 7.3.
func TestLayout(t *testing.T) {
	for _, tc := range []struct {
		name string
		got  []byte
		want string // hex; spaces between the fields
	}{
		{"ublksrv_ctrl_cmd", bytesOf(&ctrlCmd{
			DevID: 0x04030201, QueueID: 0x0605, Len: 0x0807, Addr: 0x100f0e0d0c0b0a09,
			Data: 0x1817161514131211, DevPathLen: 0x1a19, Pad: 0x1c1b, Reserved: 0x201f1e1d,
		}), "01020304 0506 0708 090a0b0c0d0e0f10 1112131415161718 191a 1b1c 1d1e1f20"},
		{"ublksrv_ctrl_dev_info", bytesOf(&devInfo{
			NrHWQueues: 0x0201, QueueDepth: 0x0403, State: 0x0605, IODescSize: 0x0807,
			MaxIOBufBytes: 0x0c0b0a09, DevID: 0x100f0e0d, UblksrvPID: 0x14131211, Pad1: 0x18171615,
			Flags: 0x201f1e1d1c1b1a19, UblksrvFlags: 0x2827262524232221,
			OwnerUID: 0x2c2b2a29, OwnerGID: 0x302f2e2d, Reserved1: 0x3837363534333231, Reserved2: 0x403f3e3d3c3b3a39,
		}), "0102 0304 0506 0708 090a0b0c 0d0e0f10 11121314 15161718 191a1b1c1d1e1f20 2122232425262728" +
			"292a2b2c 2d2e2f30 3132333435363738 393a3b3c3d3e3f40"},
		{"ublksrv_io_desc", bytesOf(&ioDesc{
			OpFlags: 0x04030201, NrSectors: 0x08070605, StartSector: 0x100f0e0d0c0b0a09, Addr: 0x1817161514131211,
		}), "01020304 05060708 090a0b0c0d0e0f10 1112131415161718"},
		{"ublksrv_io_cmd", bytesOf(&ioCmd{
			QID: 0x0201, Tag: 0x0403, Result: 0x08070605, Addr: 0x100f0e0d0c0b0a09,
		}), "0102 0304 05060708 090a0b0c0d0e0f10"},
		{"ublk_params", bytesOf(&params{
			Len: 0x04030201, Types: 0x08070605,
			Basic: paramBasic{
				Attrs: 0x0c0b0a09, LogicalBSShift: 0x0d, PhysicalBSShift: 0x0e, IOOptShift: 0x0f, IOMinShift: 0x10,
				MaxSectors: 0x14131211, ChunkSectors: 0x18171615,
				DevSectors: 0x201f1e1d1c1b1a19, VirtBoundary: 0x2827262524232221,
			},
			Discard: paramDiscard{
				DiscardAlignment: 0x2c2b2a29, DiscardGranularity: 0x302f2e2d, MaxDiscardSectors: 0x34333231,
				MaxWriteZeroesSectors: 0x38373635, MaxDiscardSegments: 0x3a39, Reserved0: 0x3c3b,
			},
			Devt:  paramDevt{CharMajor: 0x403f3e3d, CharMinor: 0x44434241, DiskMajor: 0x48474645, DiskMinor: 0x4c4b4a49},
			Zoned: paramZoned{MaxOpenZones: 0x504f4e4d, MaxActiveZones: 0x54535251, MaxZoneAppendSectors: 0x58575655},
			DMA:   paramDMAAlign{Alignment: 0x706f6e6d},
			Seg:   paramSegment{SegBoundaryMask: 0x807f7e7d7c7b7a79, MaxSegmentSize: 0x84838281, MaxSegments: 0x8685},
		})[:paramsLen], "01020304 05060708" +
			"090a0b0c 0d 0e 0f 10 11121314 15161718 191a1b1c1d1e1f20 2122232425262728" +
			"292a2b2c 2d2e2f30 31323334 35363738 393a 3b3c" +
			"3d3e3f40 41424344 45464748 494a4b4c" +
			"4d4e4f50 51525354 55565758 0000000000000000000000000000000000000000" +
			"6d6e6f70 00000000 00000000 797a7b7c7d7e7f80 81828384 8586 0000"},
		{"ublk_batch_io", bytesOf(&batchIO{
			QID: 0x0201, Flags: 0x0403, NrElem: 0x0605, ElemBytes: 0x07, Reserved: 0x08, Reserved2: 0x100f0e0d0c0b0a09,
		}), "0102 0304 0506 07 08 090a0b0c0d0e0f10"},
		{"ublk_elem_header", bytesOf(&batchElem{Tag: 0x0201, BufIndex: 0x0403, Result: 0x08070605}), "0102 0304 05060708"},
	} {
		want, err := hex.DecodeString(strings.ReplaceAll(tc.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tc.got, want) {
			t.Errorf("%s\n got %x\nwant %x", tc.name, tc.got, want)
		}
	}
}

// The numbers are built here from the _IOC scheme, and by that also checked
// against the sizes of the structures.
func TestCommandNumbers(t *testing.T) {
	const read, write = 2, 1
	ioc := func(dir, nr uint32, size uintptr) uint32 { return dir<<30 | uint32(size)<<16 | 'u'<<8 | nr }
	ctrl := unsafe.Sizeof(ctrlCmd{})
	io := unsafe.Sizeof(ioCmd{})
	for _, tc := range []struct {
		name      string
		got, want uint32
	}{
		{"GET_QUEUE_AFFINITY", cmdGetQueueAffinity, ioc(read, 0x01, ctrl)},
		{"GET_DEV_INFO", cmdGetDevInfo, ioc(read, 0x02, ctrl)},
		{"ADD_DEV", cmdAddDev, ioc(read|write, 0x04, ctrl)},
		{"DEL_DEV", cmdDelDev, ioc(read|write, 0x05, ctrl)},
		{"START_DEV", cmdStartDev, ioc(read|write, 0x06, ctrl)},
		{"STOP_DEV", cmdStopDev, ioc(read|write, 0x07, ctrl)},
		{"SET_PARAMS", cmdSetParams, ioc(read|write, 0x08, ctrl)},
		{"GET_PARAMS", cmdGetParams, ioc(read, 0x09, ctrl)},
		{"START_USER_RECOVERY", cmdStartUserRecovery, ioc(read|write, 0x10, ctrl)},
		{"END_USER_RECOVERY", cmdEndUserRecovery, ioc(read|write, 0x11, ctrl)},
		{"GET_DEV_INFO2", cmdGetDevInfo2, ioc(read, 0x12, ctrl)},
		{"GET_FEATURES", cmdGetFeatures, ioc(read, 0x13, ctrl)},
		{"DEL_DEV_ASYNC", cmdDelDevAsync, ioc(read, 0x14, ctrl)},
		{"UPDATE_SIZE", cmdUpdateSize, ioc(read|write, 0x15, ctrl)},
		{"QUIESCE_DEV", cmdQuiesceDev, ioc(read|write, 0x16, ctrl)},
		{"TRY_STOP_DEV", cmdTryStopDev, ioc(read|write, 0x17, ctrl)},
		{"FETCH_REQ", ioFetchReq, ioc(read|write, 0x20, io)},
		{"COMMIT_AND_FETCH_REQ", ioCommitAndFetchReq, ioc(read|write, 0x21, io)},
		{"REGISTER_IO_BUF", ioRegisterIOBuf, ioc(read|write, 0x23, io)},
		{"UNREGISTER_IO_BUF", ioUnregisterIOBuf, ioc(read|write, 0x24, io)},
		{"PREP_IO_CMDS", ioPrepIOCmds, ioc(read|write, 0x25, unsafe.Sizeof(batchIO{}))},
		{"COMMIT_IO_CMDS", ioCommitIOCmds, ioc(read|write, 0x26, unsafe.Sizeof(batchIO{}))},
		{"FETCH_IO_CMDS", ioFetchIOCmds, ioc(read|write, 0x27, unsafe.Sizeof(batchIO{}))},
	} {
		if tc.got != tc.want {
			t.Errorf("%s = %#x, want %#x", tc.name, tc.got, tc.want)
		}
	}
}

func TestDescriptorMapping(t *testing.T) {
	for _, tc := range []struct {
		queue, depth, page int
		offset             int64
		length             int
	}{
		{0, 64, 4096, 0, 4096},
		{1, 64, 4096, 98304, 4096}, // 4096 descriptors of 24 bytes
		{3, 171, 4096, 3 * 98304, 8192},
		{1, 4096, 4096, 98304, 98304},
		{1, 64, 65536, 131072, 65536},
	} {
		if got := descOffset(tc.queue, tc.page); got != tc.offset {
			t.Errorf("queue %d, page %d: offset %d, want %d", tc.queue, tc.page, got, tc.offset)
		}
		if got := descLength(tc.depth, tc.page); got != tc.length {
			t.Errorf("depth %d, page %d: length %d, want %d", tc.depth, tc.page, got, tc.length)
		}
	}
}

func TestFeatureNames(t *testing.T) {
	f := UserRecovery | UpdateSize | IODescSize | 1<<21
	if got, want := f.String(), "0x300408(user-recovery,update-size,io-desc-size,bit21)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !Features(0x1fe).Has(required) {
		t.Error("kernel 6.12's features are not enough")
	}
}
