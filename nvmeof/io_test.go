package nvmeof

import (
	"bytes"
	"testing"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// TestIO: every command on every way of talking, small and large, in the capsule
// and by R2T.
func TestIO(t *testing.T) {
	variants(t, func(t *testing.T, opt Options, change func(*nvmetest.Config)) {
		r := newRig(t, opt)
		c := r.connect(change)
		q := c.IO[0]
		model := make([]byte, testSize)
		for i, n := range []int{512, 4096, 8192, 16384, 16896, 65536, 128 << 10} {
			off := i * 256 << 10
			data := noise(uint64(i), n)
			copy(model[off:], data)
			if err := q.Write(1, uint64(off/512), data); err != nil {
				t.Fatalf("write of %d bytes: %v", n, err)
			}
			back := make([]byte, n)
			if err := q.Read(1, uint64(off/512), back); err != nil || !bytes.Equal(back, data) {
				t.Fatalf("%d bytes came back equal: %v, %v", n, bytes.Equal(back, data), err)
			}
			compare := wire.SQE{}
			compare = nvmetest.IOCommand(wire.OpCompare, 1, uint64(off/512), n/512)
			if _, err := q.Do(&compare, data, nil); err != nil {
				t.Errorf("comparing %d equal bytes: %v", n, err)
			}
			data[n-1]++
			compare = nvmetest.IOCommand(wire.OpCompare, 1, uint64(off/512), n/512)
			_, err := q.Do(&compare, data, nil)
			wantStatus(t, "comparing other bytes", err, wire.CompareFailure|wire.DNR)
		}
		for _, cmd := range []wire.SQE{
			{Opcode: wire.OpFlush, NSID: 1},
			nvmetest.IOCommand(wire.OpWriteZeroes, 1, 1, 3),
		} {
			if _, err := q.Do(&cmd, nil, nil); err != nil {
				t.Errorf("%v: %v", cmd.Opcode, err)
			}
		}
		clear(model[512 : 4*512])
		ranges := make([]byte, 4096)
		wire.Range{Blocks: 2, LBA: 256 << 10 / 512}.Put(ranges)
		wire.Range{Blocks: 8, LBA: 512 << 10 / 512}.Put(ranges[16:])
		clear(model[256<<10:][:1024])
		clear(model[512<<10:][:4096])
		dsm := wire.SQE{Opcode: wire.OpDSM, NSID: 1, CDW10: 1, CDW11: wire.DSMDeallocate}
		if _, err := q.Do(&dsm, ranges, nil); err != nil {
			t.Errorf("DSM: %v", err)
		}
		if !bytes.Equal(r.memory.mem, model) {
			t.Error("the disk is not what was written")
		}
		s := r.ns.Stats()
		if s.Reads != 7 || s.Writes != 7 || s.Compares != 7 || s.Flushes != 1 || s.WriteZeroes != 1 || s.Discards != 1 || s.Errors != 7 || s.InFlight != 0 {
			t.Errorf("statistics: %+v", s)
		}
	})
}

// TestSizes: the smallest and the largest commands and capsules that there can be.
func TestSizes(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		for _, v := range []struct{ data, capsule int }{
			{4096, 16}, {4096, 4096}, {128 << 10, 128 << 10}, {1 << 20, 16}, {1 << 20, 1 << 20},
		} {
			opt := opt
			opt.MaxData, opt.InCapsule = v.data, v.capsule
			r := newRig(t, opt)
			c := r.connect()
			q := c.IO[0]
			if c.Ident.IOCCSZ != uint32(64+v.capsule)/16 {
				t.Errorf("%+v: IOCCSZ is %d", v, c.Ident.IOCCSZ)
			}
			for _, n := range []int{512, v.capsule, v.data} {
				n = max(n&^511, 512)
				data, back := noise(uint64(n), n), make([]byte, n)
				if err := q.Write(1, 7, data); err != nil {
					t.Errorf("%+v: writing %d bytes: %v", v, n, err)
				}
				if err := q.Read(1, 7, back); err != nil || !bytes.Equal(back, data) {
					t.Errorf("%+v: reading %d bytes: the same %v, %v", v, n, bytes.Equal(back, data), err)
				}
			}
			wantStatus(t, "more than MDTS", q.Read(1, 0, make([]byte, v.data+512)), wire.InvalidField|wire.DNR)
		}
	})
}
