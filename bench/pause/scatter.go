package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
)

// No sequence of requests makes a volume of 100,000 pieces in less than 100,000
// requests. So its metadata is written here, as docs/formats.md draws it, while
// no daemon runs. There are two volumes of equal size in the pool, "a" and "b";
// whatever they held is lost.

const (
	labelOffset = 4096
	slotsOffset = 8192
	slotHeader  = 4096
)

// slot is the newest valid metadata slot of a member.
type slot struct {
	file       *os.File
	at         int64
	size       int64
	header     []byte
	body       []byte
	generation uint64
}

// scatter gives both volumes extents of which no two are neighbours on one
// member, on every member's newest slot.
func scatter(disks []string) error {
	var slots []slot
	for _, path := range disks {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_SYNC, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		s, err := newestSlot(f)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		slots = append(slots, s)
	}
	body, err := scattered(slots[0].body, len(disks))
	if err != nil {
		return err
	}
	for _, s := range slots {
		if err := s.write(body); err != nil {
			return fmt.Errorf("%s: %w", s.file.Name(), err)
		}
	}
	return nil
}

func newestSlot(f *os.File) (best slot, err error) {
	label := make([]byte, slotHeader)
	if _, err := f.ReadAt(label, labelOffset); err != nil {
		return best, err
	}
	le := binary.LittleEndian
	size := int64(le.Uint64(label[96:]))
	for i := range int64(2) {
		s := slot{file: f, at: slotsOffset + i*size, size: size, header: make([]byte, slotHeader)}
		if _, err := f.ReadAt(s.header, s.at); err != nil {
			return best, err
		}
		s.generation = le.Uint64(s.header[16:])
		if string(s.header[:8]) != "SWAPMETA" || s.generation < best.generation {
			continue
		}
		s.body = make([]byte, le.Uint64(s.header[24:]))
		if _, err := f.ReadAt(s.body, s.at+slotHeader); err != nil {
			return best, err
		}
		best = s
	}
	if best.body == nil {
		return best, errors.New("no metadata slot")
	}
	return best, nil
}

func (s *slot) write(body []byte) error {
	if int64(len(body)) > s.size-slotHeader {
		return fmt.Errorf("metadata of %d bytes in a slot of %d", len(body), s.size)
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	le := binary.LittleEndian
	le.PutUint64(s.header[24:], uint64(len(body)))
	le.PutUint32(s.header[32:], crc32.Checksum(body, table))
	le.PutUint32(s.header[12:], 0)
	le.PutUint32(s.header[12:], crc32.Checksum(s.header, table))
	if _, err := s.file.WriteAt(body, s.at+slotHeader); err != nil {
		return err
	}
	if _, err := s.file.WriteAt(s.header, s.at); err != nil {
		return err
	}
	return s.file.Sync()
}

// scattered returns the metadata with other segments: extent i of both volumes
// lies on member i mod members, every other extent there is left free.
func scattered(body []byte, members int) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var meta map[string]any
	if err := dec.Decode(&meta); err != nil {
		return nil, err
	}
	positions, _ := meta["positions"].([]any)
	if len(positions) != 2 {
		return nil, fmt.Errorf("the pool has %d positions, want those of a and b", len(positions))
	}
	next := make([]int64, members)
	for _, p := range positions {
		position, _ := p.(map[string]any)
		count, err := extentsOf(position)
		if err != nil {
			return nil, err
		}
		segments := make([]string, count)
		for i := range segments {
			m := i % members
			segments[i] = fmt.Sprintf("1@%d:%d", m, next[m])
			next[m] += 2
		}
		position["segments"] = segments
	}
	return json.Marshal(meta)
}

func extentsOf(position map[string]any) (count int64, err error) {
	segments, _ := position["segments"].([]any)
	for _, s := range segments {
		var n, member, start int64
		if _, err := fmt.Sscanf(fmt.Sprint(s), "%d@%d:%d", &n, &member, &start); err != nil {
			return 0, fmt.Errorf("segment %v: %w", s, err)
		}
		count += n
	}
	return count, nil
}
