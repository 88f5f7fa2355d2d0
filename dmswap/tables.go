package dmswap

import (
	"strings"

	"github.com/swapback/swapback/dmswap/dm"
)

// Endings of the names and UUIDs of the devices that a snapshot needs.
const (
	suffixReal = "-real" // the volume's extents, under snapshot-origin
	suffixCOW  = "-cow"  // where old data goes
	suffixSnap = "-snap" // what the backup reads
)

// uuidPrefix begins the UUID of every device-mapper device of swapback.
const uuidPrefix = "SWAPBACK-"

// dmUUIDPrefix begins the UUIDs of one pool's devices.
func dmUUIDPrefix(pool UUID) string { return uuidPrefix + pool + "-" }

// dmUUID is the identity of a device; it stays when names change.
func dmUUID(pool, volume UUID, suffix string) string { return dmUUIDPrefix(pool) + volume + suffix }

// dmName is what people see in lsblk: swapback-POOL-VOLUME, with the dashes
// inside the names doubled, as LVM does. Names that are too long for the
// kernel are cut and told apart by the volume's UUID.
func dmName(pool, volume string, id UUID, suffix string) string {
	name := dmBaseName(pool, volume)
	if len(name)+len(suffix) > dm.MaxName {
		return dmUniqueName(pool, volume, id, suffix)
	}
	return name + suffix
}

// dmUniqueName is for a name that is too long, or taken by the volume of
// another pool of the same name.
func dmUniqueName(pool, volume string, id UUID, suffix string) string {
	name, mark := dmBaseName(pool, volume), "~"+id[:8]
	return name[:min(len(name), dm.MaxName-len(suffix)-len(mark))] + mark + suffix
}

func dmBaseName(pool, volume string) string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return "swapback-" + double(pool) + "-" + double(volume)
}

// placement is what tables are made from: where the members are.
type placement struct {
	extentSize int64
	members    []memberRecord
	devices    []dm.Device // of the members; zero for one that is missing
}

// absent tells whether one of the stripes is on a member that is missing.
func (p placement) absent(stripes []SegmentStripe) bool {
	for _, st := range stripes {
		if p.devices[st.Member] == (dm.Device{}) {
			return true
		}
	}
	return false
}

// linear is the place of an offset on a member.
func (p placement) linear(st SegmentStripe, offset int64) dm.Linear {
	return dm.Linear{
		Device: p.devices[st.Member],
		Start:  uint64(p.members[st.Member].DataOffset+st.Start*p.extentSize+offset) / dm.SectorSize,
	}
}

// table maps the first size bytes of the segments. The kernel takes a striped
// entry only if it ends with a whole row of stripes; the chunks of a row that
// the size cuts off are mapped one by one, to the places where the whole row
// would have them. A segment with a stripe on a missing member answers errors
// all over: a stripe's worth of holes in it would leave nothing of use.
func (p placement) table(segments []Segment, stripeSize, size int64) dm.Table {
	var t dm.Table
	at := int64(0)
	add := func(length int64, target dm.Target) {
		t = append(t, dm.Entry{Start: uint64(at) / dm.SectorSize, Length: uint64(length) / dm.SectorSize, Target: target})
		at += length
	}
	for _, s := range segments {
		n := int64(len(s.Stripes))
		length := min(s.Extents*n*p.extentSize, size-at)
		if length <= 0 {
			break
		}
		if p.absent(s.Stripes) {
			add(length, dm.ErrorTarget{})
			continue
		}
		if n == 1 {
			add(length, p.linear(s.Stripes[0], 0))
			continue
		}
		row := n * stripeSize
		if rows := length / row; rows > 0 {
			target := dm.Striped{Chunk: uint64(stripeSize) / dm.SectorSize}
			for _, st := range s.Stripes {
				target.Stripes = append(target.Stripes, p.linear(st, 0))
			}
			add(rows*row, target)
		}
		rest := length % row
		offset := length / row * stripeSize
		for _, st := range s.Stripes {
			if rest == 0 {
				break
			}
			chunk := min(rest, stripeSize)
			add(chunk, p.linear(st, offset))
			rest -= chunk
		}
	}
	return t
}

// volumeTable maps a volume onto a position.
func (p placement) volumeTable(v *volumeRecord, pos *positionRecord) dm.Table {
	return p.table(pos.Segments, pos.StripeSize, v.Size)
}
