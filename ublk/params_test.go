package ublk

import (
	"math"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

func TestParamsRoundTrip(t *testing.T) {
	nvme := Limits{
		Size: 4 << 30, LogicalBlockSize: 512, PhysicalBlockSize: 4096, MinIOSize: 4096, OptimalIOSize: 4096,
		VolatileCache: true, MaxDiscard: 2 << 30, DiscardGranularity: 512, MaxWriteZeroes: 128 << 10,
	}
	disk := Limits{
		Size: 1 << 40, LogicalBlockSize: 4096, PhysicalBlockSize: 4096, MinIOSize: 8192, OptimalIOSize: 1 << 20,
		Rotational: true, ReadOnly: true, Boundary: 1 << 20,
	}
	for _, want := range []Limits{nvme, disk} {
		p := paramsFor(want, Options{MaxIOBytes: 512 << 10}, true)
		if p.Basic.MaxSectors != 1024 {
			t.Errorf("max sectors %d, want 1024", p.Basic.MaxSectors)
		}
		decoded, err := decodeParams(bytesOf(&p)[:paramsLen])
		if err != nil {
			t.Fatal(err)
		}
		got, err := limitsOf(decoded)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("limits changed on the way (-want +got):\n%s", d)
		}
	}
}

func TestParamsFitTheDriver(t *testing.T) {
	// Hints that are no power of two, a discard limit beyond 32 bits, none for
	// write-zeroes.
	p := paramsFor(Limits{
		Size: 1 << 30, LogicalBlockSize: 4096, PhysicalBlockSize: 4096,
		MinIOSize: 0, OptimalIOSize: 3 << 16, MaxDiscard: math.MaxUint64, DiscardGranularity: 512,
	}, Options{MaxIOBytes: 4096}, false)
	if p.Basic.IOMinShift != 12 || p.Basic.IOOptShift != 16 {
		t.Errorf("hints %d and %d, want 12 and 16", p.Basic.IOMinShift, p.Basic.IOOptShift)
	}
	if p.Discard.MaxDiscardSectors%8 != 0 || p.Discard.MaxDiscardSectors < math.MaxUint32-8 {
		t.Errorf("discard of %d sectors", p.Discard.MaxDiscardSectors)
	}
	if p.Discard.DiscardGranularity != 4096 || p.Discard.MaxDiscardSegments != 1 {
		t.Errorf("discard: %+v", p.Discard)
	}
}

func TestDecodeDesc(t *testing.T) {
	for _, tc := range []struct {
		name   string
		desc   ioDesc
		op     Op
		off, n uint64
		ok     bool
	}{
		{"read", ioDesc{OpFlags: 0, NrSectors: 8, StartSector: 16}, OpRead, 8192, 4096, true},
		{"fua write", ioDesc{OpFlags: 1 | ioFlagFUA, NrSectors: 1, StartSector: 1}, OpWrite, 512, 512, true},
		{"flush without a place", ioDesc{OpFlags: 2, StartSector: math.MaxUint64}, OpFlush, 0, 0, true},
		{"large discard", ioDesc{OpFlags: 3, NrSectors: math.MaxUint32}, OpDiscard, 0, math.MaxUint32 * 512, true},
		{"zeroes", ioDesc{OpFlags: 5 | ioFlagNoUnmap, NrSectors: 2, StartSector: 2}, OpWriteZeroes, 1024, 1024, true},
		{"write same", ioDesc{OpFlags: 4, NrSectors: 1}, 4, 0, 0, false},
		{"zone append", ioDesc{OpFlags: 13, NrSectors: 1}, 13, 0, 0, false},
		{"past the end of numbers", ioDesc{OpFlags: 0, NrSectors: 8, StartSector: math.MaxUint64 / 512}, OpRead, 0, 0, false},
	} {
		op, _, off, n, ok := decodeDesc(tc.desc)
		if op != tc.op || off != tc.off || n != tc.n || ok != tc.ok {
			t.Errorf("%s: %v at %d, %d bytes, %v; want %v at %d, %d bytes, %v", tc.name, op, off, n, ok, tc.op, tc.off, tc.n, tc.ok)
		}
	}
}

func FuzzDecodeDesc(f *testing.F) {
	f.Add(uint32(1|ioFlagFUA), uint32(8), uint64(16))
	f.Add(uint32(2), uint32(0), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, flags, sectors uint32, start uint64) {
		op, _, off, n, ok := decodeDesc(ioDesc{OpFlags: flags, NrSectors: sectors, StartSector: start})
		if !ok {
			return
		}
		if op >= opCount {
			t.Fatalf("operation %v passed", op)
		}
		if off+n < off || off+n > math.MaxInt64 {
			t.Fatalf("range %d+%d passed", off, n)
		}
	})
}

func FuzzDecodeParams(f *testing.F) {
	p := paramsFor(Limits{Size: 1 << 20, LogicalBlockSize: 512, PhysicalBlockSize: 4096, MaxDiscard: 1 << 20}, Options{MaxIOBytes: 4096}, false)
	f.Add(bytesOf(&p)[:paramsLen])
	f.Add([]byte{8, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := decodeParams(data)
		if err != nil {
			return
		}
		l, err := limitsOf(p)
		if err != nil {
			return
		}
		// What passes must be servable: it goes back to the driver on resize.
		if err := l.validate(); err != nil {
			t.Fatalf("limits %+v passed: %v", l, err)
		}
	})
}

func FuzzDecodeInfo(f *testing.F) {
	f.Add(bytesOf(&devInfo{NrHWQueues: 2, QueueDepth: 64, State: 1, MaxIOBufBytes: 1 << 19, DevID: 3, Flags: 0x5a}))
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := decodeInfo(data)
		if err != nil {
			if len(data) >= int(unsafe.Sizeof(devInfo{})) && info != (Info{}) {
				t.Fatal("an error with an answer")
			}
			return
		}
		// These become lengths of mappings and arrays.
		if info.Queues < 1 || info.Queues > MaxQueues || info.Depth < 1 || info.Depth > MaxDepth ||
			info.MaxIOBytes < 0 || info.MaxIOBytes > maxIOBytes || info.ID < 0 {
			t.Fatalf("%+v passed", info)
		}
	})
}
