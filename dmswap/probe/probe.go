// Package probe tells what a disk carries, from the magic numbers that
// filesystems, partition tables, RAID and volume managers leave at fixed places.
// It is made to refuse disks, so it errs on the side of finding something. It
// only reads.
package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Found is one thing that a disk carries.
type Found struct {
	Name    string  // for people, with an article: "an ext4 filesystem"
	Offsets []int64 // bytes at which its magic number is: some keep copies
}

func (f Found) String() string { return f.Name }

// minDisk is the smallest disk that is looked at.
const minDisk = 4096

// Probe reads the places where magic numbers are and returns what it finds, in
// the order of its table. size is the disk's in bytes. A disk that can't be
// read is an error: it can't be told to be empty.
func Probe(disk io.ReaderAt, size int64) ([]Found, error) {
	r := &reader{disk: disk, size: size, blocks: map[int64][]byte{}}
	var list []Found
	seen := map[string]int{} // name → index in list
	for _, s := range signatures {
		for _, at := range s.places(size) {
			b, err := r.read(at, max(len(s.magic), s.need))
			if errors.Is(err, errOutside) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if !bytes.HasPrefix(b, s.magic) {
				continue
			}
			name := s.name
			if s.check != nil {
				n, ok := s.check(b, r)
				if !ok {
					continue
				}
				if n != "" {
					name = n
				}
			}
			i, ok := seen[name]
			if !ok {
				i = len(list)
				seen[name] = i
				list = append(list, Found{Name: name})
			}
			list[i].Offsets = append(list[i].Offsets, at)
		}
	}
	return list, nil
}

var errOutside = errors.New("outside the disk")

// reader reads whole aligned blocks, once each, into aligned memory if the
// disk needs that: the callers open disks with O_DIRECT.
type reader struct {
	disk   io.ReaderAt
	size   int64
	blocks map[int64][]byte
}

const readBlock = 4096

// read returns n bytes at an offset.
func (r *reader) read(at int64, n int) ([]byte, error) {
	if at < 0 || r.size < minDisk || at+int64(n) > r.size {
		return nil, errOutside
	}
	out := make([]byte, 0, n)
	for len(out) < n {
		pos := at + int64(len(out))
		start := pos &^ (readBlock - 1)
		b, err := r.block(start)
		if err != nil {
			return nil, err
		}
		if pos-start >= int64(len(b)) {
			return nil, errOutside
		}
		part := b[pos-start:]
		out = append(out, part[:min(len(part), n-len(out))]...)
	}
	return out, nil
}

func (r *reader) block(start int64) ([]byte, error) {
	if b, ok := r.blocks[start]; ok {
		return b, nil
	}
	// A disk of 512-byte blocks can end within one of ours.
	b := aligned(int(min(readBlock, r.size-start)))
	if _, err := r.disk.ReadAt(b, start); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading %d bytes at %d: %w", len(b), start, err)
	}
	r.blocks[start] = b
	return b, nil
}

// le16 and friends read numbers; the callers have asked for enough bytes.
func le16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

func text(b []byte) string { return strings.TrimRight(string(b), " \x00") }
