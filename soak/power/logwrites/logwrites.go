// Package logwrites reads the log of the device-mapper target log-writes and
// computes from it what a disk holds when its power is cut.
//
// # Format
//
// From drivers/md/dm-log-writes.c. Integers are little-endian. A block is the
// logical block of the logged device.
//
//	block 0: superblock
//	     0   8  magic 0x6a736677736872
//	     8   8  version, 1
//	    16   8  number of entries
//	    24   4  block size in bytes
//
//	then for each entry one block, and behind it the data of a write
//	     0   8  first block that was written
//	     8   8  number of blocks
//	    16   8  flags: 1 flush, 2 FUA, 4 discard, 8 mark, 16 metadata
//	    24   8  length of the text of a mark in bytes
//	    32   …  text of the mark
//
// A discard has blocks but no data. A write stands in the log where it became
// durable: one with FUA when it was done, any other before the flush that came
// after it.
package logwrites

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Flags of an entry.
const (
	Flush    = 1 << 0
	FUA      = 1 << 1
	Discard  = 1 << 2
	Mark     = 1 << 3
	Metadata = 1 << 4
)

const (
	magic      = 0x6a736677736872
	version    = 1
	superSize  = 28
	entrySize  = 32
	minBlock   = 512
	maxBlock   = 64 << 10
	maxEntries = 1 << 24 // more is damage, not a test
)

// Error is wrapped by every complaint about a log's content.
var Error = errors.New("not a log of dm-log-writes")

// Entry is one write, flush, discard or mark.
type Entry struct {
	Offset, Length int64 // bytes on the logged device; both may be 0
	Flags          uint64
	Text           string // of a mark
	data           int64  // where its bytes are in the log
}

// Has tells whether the entry has a flag.
func (e Entry) Has(flag uint64) bool { return e.Flags&flag != 0 }

// HasData tells whether the log holds the bytes that were written.
func (e Entry) HasData() bool { return e.Length > 0 && !e.Has(Discard|Mark) }

// Log is a log that was read up to its last entry. It keeps the entries but not
// their data.
type Log struct {
	Entries []Entry
	// BlockSize is the logical block of the logged device in bytes: the least
	// that a disk writes whole.
	BlockSize int
	// Size is where the last entry ends, in bytes.
	Size int64
	r    io.ReaderAt
}

// Read reads the entries of a log of size bytes. A log that does not end with
// its last entry is refused.
func Read(r io.ReaderAt, size int64) (*Log, error) {
	head := make([]byte, superSize)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("reading the superblock: %w", err)
	}
	le := binary.LittleEndian
	count, block := le.Uint64(head[16:]), int64(le.Uint32(head[24:]))
	switch {
	case le.Uint64(head) != magic:
		return nil, fmt.Errorf("%w: magic %#x", Error, le.Uint64(head))
	case le.Uint64(head[8:]) != version:
		return nil, fmt.Errorf("%w: version %d", Error, le.Uint64(head[8:]))
	case block < minBlock || block > maxBlock || block&(block-1) != 0:
		return nil, fmt.Errorf("%w: blocks of %d bytes", Error, block)
	case count > maxEntries || int64(count) > size/block:
		return nil, fmt.Errorf("%w: %d entries in %d bytes", Error, count, size)
	}
	l := &Log{BlockSize: int(block), r: r}
	at := block
	for i := range count {
		e, err := l.readEntry(at, size)
		if err != nil {
			return nil, fmt.Errorf("entry %d at byte %d: %w", i, at, err)
		}
		l.Entries = append(l.Entries, e)
		at += block
		if e.HasData() {
			at += e.Length
		}
	}
	l.Size = at
	return l, nil
}

func (l *Log) readEntry(at, size int64) (Entry, error) {
	block := int64(l.BlockSize)
	if at+block > size {
		return Entry{}, fmt.Errorf("%w: it ends behind the log", Error)
	}
	b := make([]byte, block)
	if _, err := l.r.ReadAt(b, at); err != nil {
		return Entry{}, err
	}
	le := binary.LittleEndian
	first, blocks, flags, text := le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])
	most := uint64(math.MaxInt64) / uint64(block) / 2
	if first > most || blocks > most {
		return Entry{}, fmt.Errorf("%w: %d blocks from %d on", Error, blocks, first)
	}
	e := Entry{Offset: int64(first) * block, Length: int64(blocks) * block, Flags: flags, data: at + block}
	if e.Has(Mark) {
		if text > uint64(block-entrySize) {
			return Entry{}, fmt.Errorf("%w: mark of %d bytes", Error, text)
		}
		e.Text = string(b[entrySize : entrySize+text])
		e.Length = 0
	}
	if e.HasData() && e.Length > size-e.data {
		return Entry{}, fmt.Errorf("%w: its %d bytes of data end behind the log", Error, e.Length)
	}
	return e, nil
}

// Data returns the bytes that an entry writes: zeroes for a discard, whose
// blocks may read as anything.
func (l *Log) Data(e Entry) ([]byte, error) {
	if e.Has(Discard) {
		return make([]byte, e.Length), nil
	}
	b := make([]byte, e.Length)
	if len(b) == 0 {
		return b, nil
	}
	if _, err := l.r.ReadAt(b, e.data); err != nil {
		return nil, fmt.Errorf("reading %d bytes at %d of the log: %w", len(b), e.data, err)
	}
	return b, nil
}
