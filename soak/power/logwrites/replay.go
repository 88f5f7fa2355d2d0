package logwrites

import (
	"fmt"
	"iter"
	"slices"
)

// Patch is bytes to be written at an offset of the logged device.
type Patch struct {
	Offset int64
	Data   []byte
}

// Replay computes what is durable after each entry of a log, and what is in the
// disk's cache then. It goes forward only and is not safe for concurrent use.
type Replay struct {
	log  *Log
	sink func(Patch)
	next int
	// cached are writes that no flush has followed yet, in the order of the log.
	cached []int
	// owner is 1 + the entry whose data is durable in each block: a write that
	// stayed in the cache for long must not cover a later one with FUA.
	owner []int32
}

// NewReplay begins before the first entry of the log of a device of size bytes.
// Sink is told what becomes durable, and may keep the bytes.
func NewReplay(log *Log, size int64, sink func(Patch)) *Replay {
	return &Replay{log: log, sink: sink, owner: make([]int32, size/int64(log.BlockSize))}
}

// Advance replays entries until `to` of them are done.
func (r *Replay) Advance(to int) error {
	for ; r.next < to; r.next++ {
		if err := r.step(r.next); err != nil {
			return fmt.Errorf("replaying entry %d: %w", r.next, err)
		}
	}
	return nil
}

func (r *Replay) step(i int) error {
	e := r.log.Entries[i]
	if e.Has(Mark) {
		return nil
	}
	if e.Offset+e.Length > int64(len(r.owner)*r.log.BlockSize) {
		return fmt.Errorf("%d bytes at %d are behind the end of the device", e.Length, e.Offset)
	}
	if e.Has(Flush) {
		for _, c := range r.cached {
			if err := r.settle(c); err != nil {
				return err
			}
		}
		r.cached = nil
	}
	switch {
	case e.Length == 0:
		return nil
	case e.Has(FUA):
		return r.settle(i)
	}
	r.cached = append(r.cached, i)
	return nil
}

// settle makes a write durable.
func (r *Replay) settle(i int) error {
	patches, err := r.visible(i, nil)
	if err != nil {
		return err
	}
	for _, p := range patches {
		for b := range r.blocks(p) {
			r.owner[b] = int32(i) + 1
		}
		r.sink(p)
	}
	return nil
}

func (r *Replay) blocks(p Patch) iter.Seq[int64] {
	size := int64(r.log.BlockSize)
	return func(yield func(int64) bool) {
		for b := p.Offset / size; b < (p.Offset+int64(len(p.Data)))/size; b++ {
			if !yield(b) {
				return
			}
		}
	}
}

// visible returns the runs of an entry's blocks that are newer than what is
// durable, and that keep, if not nil, wants.
func (r *Replay) visible(i int, keep func() bool) (list []Patch, err error) {
	e := r.log.Entries[i]
	data, err := r.log.Data(e)
	if err != nil {
		return nil, err
	}
	size := int64(r.log.BlockSize)
	open := false
	for at := int64(0); at < e.Length; at += size {
		if r.owner[(e.Offset+at)/size] > int32(i)+1 || keep != nil && !keep() {
			open = false
			continue
		}
		if !open {
			list, open = append(list, Patch{Offset: e.Offset + at}), true
		}
		last := &list[len(list)-1]
		last.Data = data[last.Offset-e.Offset : at+size]
	}
	return list, nil
}

// Cached is the state in which the log's writes up to here are on the disk and
// none behind it, whatever waits for a flush: the prefix of the log. The patches
// go, in order, over what is durable.
func (r *Replay) Cached() ([]Patch, error) { return r.patches(r.cached, nil) }

// Survivors is a state in which the power is cut here, or later on the way to
// the next flush: those blocks of volatile writes that keep wants have got from
// the cache to the disk. The patches go, in order, over what is durable.
func (r *Replay) Survivors(keep func() bool) ([]Patch, error) { return r.patches(r.volatile(), keep) }

func (r *Replay) patches(entries []int, keep func() bool) (list []Patch, err error) {
	for _, i := range entries {
		more, err := r.visible(i, keep)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
}

// Volatile says how many writes the loss of power could lose here.
func (r *Replay) Volatile() int { return len(r.volatile()) }

// volatile are the writes of which any part may have reached the disk. The log
// has the writes of one flush one behind the other, just before it: when that
// flush begins all of them are in the cache, and nothing behind it has been
// acknowledged.
func (r *Replay) volatile() []int {
	list := slices.Clone(r.cached)
	for i := r.next; i < len(r.log.Entries); i++ {
		switch e := r.log.Entries[i]; {
		case e.Has(Flush):
			return list
		case e.Has(Mark) || e.Has(FUA):
			return r.cached // their flush may not have begun
		}
		list = append(list, i)
	}
	return r.cached
}
