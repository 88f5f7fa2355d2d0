package dmswap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/swapback/swapback/soak/heap"
)

// image is the head of a disk that somebody has made to do harm: it has every
// checksum right.
type image struct {
	label label
	body  string
}

func (d *image) ReadAt(p []byte, off int64) (int, error) {
	b := slotHeader{Generation: 1, BodyLen: int64(len(d.body)), BodyCRC: crc([]byte(d.body)), Pool: d.label.Pool, Member: d.label.Member, Written: goldenTime}.encode()
	switch off {
	case labelOffset:
		b = d.label.encode()
	case slotsOffset + slotBody:
		b = []byte(d.body)
	}
	clear(p[copy(p, b):])
	return len(p), nil
}

func (d *image) WriteAt([]byte, int64) (int, error)     { return 0, io.ErrShortWrite }
func (d *image) WriteDurable(p []byte, off int64) error { return io.ErrShortWrite }
func (d *image) Sync() error                            { return nil }

// A full slot costs a small multiple of its size, whatever is in it.
func TestHostileSlot(t *testing.T) {
	const slotSize = 8 << 20 // the largest is four times that
	l := goldenLabel()
	l.SlotSize = slotSize
	l.Slots[1] = slotsOffset + slotSize
	l.DataOffset = roundUp(slotsOffset+2*slotSize, l.ExtentSize)
	l.DiskSize = l.DataOffset + l.Extents*l.ExtentSize
	if err := l.check(); err != nil {
		t.Fatal(err)
	}
	const room = slotSize - slotBody
	head := fmt.Sprintf(`{"swapback":1,"generation":1,"previous":0,"pool":{"uuid":%q,"name":"p","created":"2026-11-25T00:00:00Z","extent_size":%d},`, l.Pool, l.ExtentSize)
	fill := func(open, part, end string) [3]string { return [3]string{open, part, end} }
	for name, parts := range map[string][3]string{
		"members":    fill(head+`"members":[`, `{},`, `{}]}`),
		"volumes":    fill(head+`"volumes":[`, `{},`, `{}]}`),
		"positions":  fill(head+`"positions":[`, `{},`, `{}]}`),
		"snapshots":  fill(head+`"snapshots":[`, `{},`, `{}]}`),
		"epochs":     fill(head+`"epochs":[`, `{},`, `{}]}`),
		"missing":    fill(head+`"missing":[`, `{},`, `{}]}`),
		"nothings":   fill(head+`"volumes":[`, `null,`, `null]}`),
		"segments":   fill(head+`"positions":[{"segments":[`, `"1@0:0",`, `"1@0:0"]}]}`),
		"no segment": fill(head+`"positions":[{"segments":[`, `"",`, `""]}]}`),
		"stripes":    fill(head+`"positions":[{"segments":["1@0:0`, `+0:0`, `"]}]}`),
		"deep":       fill(head+`"volumes":`, `[`, ``),
		"unknown":    fill(head+`"x":[`, `0,`, `0]}`),
		"long name":  fill(head+`"volumes":[{"name":"`, `v`, `"}]}`),
		"twice":      fill(`{`, `"volumes":[],`, `"volumes":[]}`),
		"more":       fill(head+`"volumes":[]}`, `{}`, ``),
	} {
		t.Run(name, func(t *testing.T) {
			open, part, end := parts[0], parts[1], parts[2]
			body := open + strings.Repeat(part, (room-len(open)-len(end))/len(part)) + end
			var s slotState
			top := heap.Peak(func() { s = readSlot(&image{label: l, body: body}, &l, 0) })
			t.Logf("at most %d MiB on the heap: %.200v", top>>20, s.err)
			if s.err == nil {
				t.Error("it was taken")
			}
			if len(s.err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(s.err.Error()))
			}
			// Measured: 18 times for a million segments, 6 times for the rest, of
			// which the test itself is 3.
			if top > 24*slotSize {
				t.Errorf("%d MiB lay on the heap", top>>20)
			}
		})
	}
}

// Whatever number a label states, with its checksum right, the label is refused
// or stays within its bounds.
func TestHostileLabel(t *testing.T) {
	good := goldenLabel().encode()
	le := binary.LittleEndian
	taken := 0
	for at := 48; at < 120; at += 4 {
		for _, x := range []uint64{0, 1, 2, 4096, 1 << 20, 1 << 31, 1 << 40, 1 << 62, math.MaxInt64, 1 << 63, math.MaxUint64, math.MaxUint64 - 4095} {
			b := append([]byte(nil), good...)
			le.PutUint64(b[at:], x)
			le.PutUint32(b[12:], 0)
			le.PutUint32(b[12:], crc(b))
			l, err := decodeLabel(b)
			if err != nil {
				if !errors.Is(err, errBadLabel) {
					t.Errorf("%#x at %d: %v", x, at, err)
				}
				continue
			}
			taken++
			// In numbers that can't overflow.
			end := float64(l.DataOffset) + float64(l.Extents)*float64(l.ExtentSize)
			if l.Count < 1 || l.Count > maxMembers || l.SlotSize > maxSlotSize || l.Extents < 1 || end > float64(l.DiskSize) ||
				l.Slots[1]+l.SlotSize > l.DataOffset || l.Index >= l.Count {
				t.Errorf("%#x at %d: %+v was taken", x, at, l)
			}
		}
	}
	if taken == 0 {
		t.Error("no label was taken: the test proves nothing")
	}
}

// Room for old data that no number of bytes can hold is room for all of it.
func TestSnapshotOfAnySize(t *testing.T) {
	p, _ := testPool(t, 100)
	v := mustCreate(t, p, VolumeSpec{Name: "a", Size: 3 * p.Info().ExtentSize})
	for _, size := range []int64{math.MaxInt64, math.MaxInt64 - p.Info().ExtentSize, 1 << 62} {
		s, err := p.OpenSnapshot(ctx, "a", SnapshotOptions{COWSize: size})
		if err != nil {
			t.Errorf("%d bytes: %v", size, err)
			continue
		}
		if s.COWSize() != v.Size {
			t.Errorf("%d bytes: room for %d, want %d", size, s.COWSize(), v.Size)
		}
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	mustCheck(t, p)
}
