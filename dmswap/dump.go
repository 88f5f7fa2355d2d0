package dmswap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// A dump is the metadata of a pool as a text file, for rescue. The first line
// has 64 bytes and the shape of the repository's text objects:
//
//	offset  bytes  field
//	0       9      "swapback-"
//	9       12     kind, padded with spaces: "metadata"
//	21      5      " v" and three digits: version, 001
//	26      20     " length " and twelve digits: bytes of the body
//	46      16     " crc32c " and eight hex digits, over bytes 0–53 and the body
//	62      2      space, newline
//
// The second line is JSON about the dump: where it comes from, when it was
// taken, and what the labels have beyond the metadata:
//
//	{"from":…,"taken":…,"slot_size":…,"disk_sizes":[…]}
//
// Everything after it is the body of a metadata slot, byte for byte.
const (
	dumpHead    = 64
	dumpVersion = 1
	maxDump     = maxSlotSize + 1<<20
)

// Dump is the metadata of a pool at one generation, as a file keeps it.
type Dump struct {
	From  string    // disk and slot
	Taken time.Time // when it was read
	meta  *metadata
	about dumpAbout
}

type dumpAbout struct {
	From      string    `json:"from"`
	Taken     time.Time `json:"taken"`
	SlotSize  int64     `json:"slot_size"`
	DiskSizes []int64   `json:"disk_sizes"` // by member; 0 for one that was not there
}

func newDump(meta *metadata, from string, slotSize int64, sizes []int64) *Dump {
	about := dumpAbout{From: from, Taken: time.Now().UTC(), SlotSize: slotSize, DiskSizes: sizes}
	return &Dump{From: about.From, Taken: about.Taken, meta: meta, about: about}
}

// Pool, PoolUUID and Generation say what the dump is of.
func (d *Dump) Pool() string       { return d.meta.Pool.Name }
func (d *Dump) PoolUUID() UUID     { return d.meta.Pool.UUID }
func (d *Dump) Generation() uint64 { return d.meta.Generation }

// Volumes is how many volumes the metadata has.
func (d *Dump) Volumes() int { return len(d.meta.Volumes) }

// Encode returns the text.
func (d *Dump) Encode() ([]byte, error) {
	about, err := json.Marshal(d.about)
	if err != nil {
		return nil, fmt.Errorf("dump: %w", err)
	}
	meta, err := d.meta.encode()
	if err != nil {
		return nil, fmt.Errorf("dump: %w", err)
	}
	body := append(append(about, '\n'), meta...)
	head := fmt.Sprintf("swapback-%-12s v%03d length %012d crc32c ", "metadata", dumpVersion, len(body))
	sum := crc(append([]byte(head), body...))
	return append(fmt.Appendf(nil, "%s%08x \n", head, sum), body...), nil
}

// DecodeDump reads the text of a dump and checks everything about it.
func DecodeDump(text []byte) (*Dump, error) {
	bad := func(format string, args ...any) error {
		return errf(ErrInvalid, "name a file that swapback pool metadata dump wrote", "dump: "+format, args...)
	}
	if len(text) < dumpHead || len(text) > maxDump || string(text[:9]) != "swapback-" || string(bytes.TrimRight(text[9:21], " ")) != "metadata" ||
		string(text[26:34]) != " length " || string(text[46:54]) != " crc32c " || string(text[62:64]) != " \n" {
		return nil, bad("this is no dump of metadata")
	}
	body := text[dumpHead:]
	if n, err := strconv.ParseUint(string(text[34:46]), 10, 63); err != nil || n != uint64(len(body)) {
		return nil, bad("%d bytes of text, the first line says %s", len(body), text[34:46])
	}
	if want := fmt.Sprintf("%08x", crc(append(bytes.Clone(text[:54]), body...))); want != string(text[54:62]) {
		return nil, bad("its checksum is %s, not %s: it was changed or damaged", want, text[54:62])
	}
	if v := string(text[21:26]); v != fmt.Sprintf(" v%03d", dumpVersion) {
		return nil, errf(ErrInvalid, "use a newer swapback", "dump: written by another version:%s", v)
	}
	line, meta, ok := bytes.Cut(body, []byte("\n"))
	if !ok {
		return nil, bad("no metadata in it")
	}
	d := &Dump{}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d.about); err != nil {
		return nil, bad("second line: %v", err)
	}
	var err error
	if d.meta, err = decodeMetadata(meta); err != nil {
		return nil, bad("%v", err)
	}
	d.From, d.Taken = d.about.From, d.about.Taken
	if n := len(d.about.DiskSizes); n != len(d.meta.Members) {
		return nil, bad("%d sizes of %d disks", n, len(d.meta.Members))
	}
	for i := range d.meta.Members {
		if l := d.label(i, d.about.DiskSizes[i]); d.about.DiskSizes[i] != 0 && l.check() != nil {
			return nil, bad("member %d: %v", i, l.check())
		}
	}
	return d, nil
}

func (d *Dump) label(i int, size int64) label { return d.meta.labelOf(i, d.about.SlotSize, size) }

// Dump returns the committed metadata.
func (p *Pool) Dump() (*Dump, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.disks == nil {
		return nil, p.state
	}
	return p.dump(), nil
}

// dump is Dump for a caller that holds mu.
func (p *Pool) dump() *Dump {
	sizes := make([]int64, len(p.store.members))
	slot := int64(0)
	for i, m := range p.store.members {
		if m.disk != nil {
			sizes[i], slot = m.label.DiskSize, m.label.SlotSize
		}
	}
	return newDump(p.meta, "the open pool", slot, sizes)
}
