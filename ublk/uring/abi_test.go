package uring

import (
	"bytes"
	"testing"
	"unsafe"
)

// Every field gets a value of its own, and the bytes must lie where the C
// structure of linux/io_uring.h has them (little endian; the offsets were read
// with offsetof).
func TestSQELayout(t *testing.T) {
	s := SQE{
		Opcode: 0x01, Flags: 0x02, IOPrio: 0x0403, FD: 0x08070605,
		Off: 0x100f0e0d0c0b0a09, Addr: 0x1817161514131211,
		Len: 0x1c1b1a19, OpFlags: 0x201f1e1d, UserData: 0x2827262524232221,
		BufIndex: 0x2a29, Personality: 0x2c2b, FileIndex: 0x302f2e2d,
	}
	for i := range s.Cmd {
		s.Cmd[i] = byte(0x31 + i)
	}
	wide := SQE128{SQE: s}
	for i := range wide.Rest {
		wide.Rest[i] = byte(0x41 + i)
	}
	want := make([]byte, 128)
	for i := range want {
		want[i] = byte(i + 1)
	}
	if got := bytesOf(&s); !bytes.Equal(got, want[:64]) {
		t.Errorf("SQE\n got %x\nwant %x", got, want[:64])
	}
	if got := bytesOf(&wide); !bytes.Equal(got, want) {
		t.Errorf("SQE128\n got %x\nwant %x", got, want)
	}
}

func TestCQELayout(t *testing.T) {
	c := CQE{UserData: 0x0807060504030201, Res: 0x0c0b0a09, Flags: 0x100f0e0d}
	want := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	if got := bytesOf(&c); !bytes.Equal(got, want) {
		t.Errorf("CQE\n got %x\nwant %x", got, want)
	}
}

func TestSizesAndOffsets(t *testing.T) {
	var (
		p params
		g getEventsArg
		f filesUpdate
		o sqOffsets
		c cqOffsets

		rr rsrcRegister
		ru rsrcUpdate
		br bufReg
		pb buf
	)
	for _, tc := range []struct {
		name      string
		got, want uintptr
	}{
		{"sizeof params", unsafe.Sizeof(p), 120},
		{"params.features", unsafe.Offsetof(p.Features), 20},
		{"params.wq_fd", unsafe.Offsetof(p.WQFD), 24},
		{"params.sq_off", unsafe.Offsetof(p.SQOff), 40},
		{"params.cq_off", unsafe.Offsetof(p.CQOff), 80},
		{"sizeof sq_off", unsafe.Sizeof(o), 40},
		{"sq_off.dropped", unsafe.Offsetof(o.Dropped), 20},
		{"sq_off.array", unsafe.Offsetof(o.Array), 24},
		{"sizeof cq_off", unsafe.Sizeof(c), 40},
		{"cq_off.overflow", unsafe.Offsetof(c.Overflow), 16},
		{"cq_off.cqes", unsafe.Offsetof(c.CQEs), 20},
		{"sizeof getevents_arg", unsafe.Sizeof(g), 24},
		{"getevents_arg.ts", unsafe.Offsetof(g.TS), 16},
		{"sizeof files_update", unsafe.Sizeof(f), 16},
		{"files_update.fds", unsafe.Offsetof(f.FDs), 8},
		{"sizeof rsrc_register", unsafe.Sizeof(rr), 32},
		{"rsrc_register.flags", unsafe.Offsetof(rr.Flags), 4},
		{"rsrc_register.tags", unsafe.Offsetof(rr.Tags), 24},
		{"sizeof rsrc_update", unsafe.Sizeof(ru), 16},
		{"rsrc_update.data", unsafe.Offsetof(ru.Data), 8},
		{"sizeof buf_reg", unsafe.Sizeof(br), 40},
		{"buf_reg.bgid", unsafe.Offsetof(br.BGID), 12},
		{"buf_reg.flags", unsafe.Offsetof(br.Flags), 14},
		{"sizeof buf", unsafe.Sizeof(pb), 16},
		{"buf.bid", unsafe.Offsetof(pb.BID), 12},
		{"buf_ring.tail", unsafe.Offsetof(pb.Resv), 14},
	} {
		if tc.got != tc.want {
			t.Errorf("%s = %d, want %d", tc.name, tc.got, tc.want)
		}
	}
}

func TestPrep(t *testing.T) {
	for _, tc := range []struct {
		name string
		prep func(*SQE)
		want SQE
	}{
		{"nop", func(s *SQE) { s.PrepNop() }, SQE{FD: -1}},
		{"read", func(s *SQE) { s.PrepRead(1, 2, 3, 4) },
			SQE{Opcode: 22, FD: 1, Addr: 2, Len: 3, Off: 4}},
		{"write", func(s *SQE) { s.PrepWrite(1, 2, 3, 4, 5) },
			SQE{Opcode: 23, FD: 1, Addr: 2, Len: 3, Off: 4, OpFlags: 5}},
		{"read fixed", func(s *SQE) { s.PrepReadFixed(1, 2, 3, 4, 5) },
			SQE{Opcode: 4, FD: 1, Addr: 2, Len: 3, Off: 4, BufIndex: 5}},
		{"write fixed", func(s *SQE) { s.PrepWriteFixed(1, 2, 3, 4, 5, 6) },
			SQE{Opcode: 5, FD: 1, Addr: 2, Len: 3, Off: 4, BufIndex: 5, OpFlags: 6}},
		{"fsync", func(s *SQE) { s.PrepFsync(1, FsyncDatasync) },
			SQE{Opcode: 3, FD: 1, OpFlags: 1}},
		{"fallocate", func(s *SQE) { s.PrepFallocate(1, 2, 3, 4) },
			SQE{Opcode: 17, FD: 1, Off: 3, Addr: 4, Len: 2}},
		{"command", func(s *SQE) { s.PrepCmd(1, 0xc0107520) },
			SQE{Opcode: 46, FD: 1, Off: 0xc0107520}},
		{"discard", func(s *SQE) { s.PrepBlockDiscard(1, 2, 0x0807060504030201) },
			SQE{Opcode: 46, FD: 1, Off: 0x1200, Addr: 2, Cmd: [16]byte{1, 2, 3, 4, 5, 6, 7, 8}}},
		{"multishot command", func(s *SQE) { s.PrepCmdMultishot(1, 0xc0107527, 3) },
			SQE{Opcode: 46, Flags: 1 << 5, FD: 1, Off: 0xc0107527, OpFlags: 2, BufIndex: 3}},
		{"message", func(s *SQE) { s.PrepMsgRing(1, 2, 3) },
			SQE{Opcode: 40, FD: 1, Len: 2, Off: 3}},
	} {
		var got SQE
		tc.prep(&got)
		if got != tc.want {
			t.Errorf("%s:\n got %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}

func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
