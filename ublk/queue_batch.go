package ublk

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/swapback/swapback/ublk/uring"
	"golang.org/x/sys/unix"
)

// batch is what a queue needs for UBLK_F_BATCH_IO: one multishot command that
// delivers lists of tags, and lists of results that are committed by one command
// per turn.
type batch struct {
	fetch   *uring.BufferRing
	arrived []uint16 // delivered; capacity depth
	next    int      // the first of them that was not looked at yet

	// Two lists of results: while the driver has one, the other is filled. The
	// driver reads a list while the command is submitted, so it has been read
	// when the command has completed.
	lists [2]resultList
	fill  int
	mem   []byte // behind both lists
}

type resultList struct {
	elems []batchElem
	n     int  // filled
	sent  bool // submitted, not completed
}

const (
	fetchGroup = 0
	// fetchBuffers is how many lists of tags can be delivered in one turn.
	fetchBuffers = 16
	elemBytes    = int(unsafe.Sizeof(batchElem{}))
)

func (b *batch) add(e batchElem) {
	l := &b.lists[b.fill]
	l.elems[l.n] = e
	l.n++
}

func (b *batch) close() {
	if b.fetch != nil {
		_ = b.fetch.Close()
	}
	_ = unix.Munmap(b.mem)
}

func (q *queue) element(tag uint16, res int32) batchElem {
	return batchElem{Tag: tag, BufIndex: q.bufferIndex(tag), Result: res}
}

// startBatch gives all tags to the driver (PREP_IO_CMDS) and starts fetching.
func (q *queue) startBatch() error {
	size := q.depth * elemBytes
	mem, err := unix.Mmap(-1, 0, 2*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("reserving lists of %d results: %w", q.depth, err)
	}
	q.batch = &batch{mem: mem, arrived: make([]uint16, 0, q.depth)}
	for i := range q.batch.lists {
		q.batch.lists[i].elems = unsafe.Slice((*batchElem)(unsafe.Pointer(&mem[i*size])), q.depth)
	}
	if q.batch.fetch, err = q.ring.NewBufferRing(fetchGroup, fetchBuffers, 2*q.depth); err != nil {
		return err
	}
	first := &q.batch.lists[0]
	for tag := range first.elems {
		first.elems[tag] = q.element(uint16(tag), 0)
	}
	q.batchCommand(ioPrepIOCmds, first.elems).UserData = kindIgnored
	if err := q.ring.Enter(1); err != nil {
		return err
	}
	c := q.ring.Peek()
	if c == nil || c.UserData != kindIgnored {
		return errors.New("the driver did not answer PREP_IO_CMDS")
	}
	res := c.Res
	q.ring.Advance()
	if res != 0 {
		return fmt.Errorf("PREP_IO_CMDS: %w", unix.Errno(-res))
	}
	q.live = 1
	q.armFetch()
	return nil
}

func (q *queue) batchCommand(op uint32, elems []batchElem) *uring.SQE {
	e := q.entry()
	e.PrepCmd(fileChar, op)
	e.Flags |= uring.SQEFixedFile
	e.Addr = uint64(uintptr(unsafe.Pointer(&elems[0])))
	e.Len = uint32(len(elems) * elemBytes)
	*(*batchIO)(unsafe.Pointer(&e.Cmd[0])) = batchIO{
		QID: uint16(q.id), Flags: batchAutoBufRegFallback, NrElem: uint16(len(elems)), ElemBytes: uint8(elemBytes),
	}
	return e
}

func (q *queue) armFetch() {
	e := q.entry()
	e.PrepCmdMultishot(fileChar, ioFetchIOCmds, fetchGroup)
	e.Flags |= uring.SQEFixedFile
	e.UserData = kindFetch
	*(*batchIO)(unsafe.Pointer(&e.Cmd[0])) = batchIO{QID: uint16(q.id), NrElem: uint16(q.depth), ElemBytes: 2}
}

// fetchedBatch: the fetch command has delivered a list of tags, or has ended.
func (q *queue) fetchedBatch(res int32, flags uint32) {
	b := q.batch
	if res > 0 && flags&uring.CQEBuffer != 0 {
		id := uint16(flags >> 16)
		list := b.fetch.Get(id, int(res)&^1)
		for i := 0; i < len(list); i += 2 {
			b.arrived = append(b.arrived, *(*uint16)(unsafe.Pointer(&list[i])))
		}
		b.fetch.Put(id)
	}
	if flags&uring.CQEMore == 0 {
		if res < 0 && unix.Errno(-res) != unix.ENOBUFS {
			q.ended("batch", res)
		} else {
			q.armFetch() // it ran out of buffers; they are back by now
		}
	}
	q.takeArrived()
}

// takeArrived looks at what was delivered, in its order. Each tag is left behind
// before it is worked on, so that a panic loses none of the others: the next turn
// goes on with them.
func (q *queue) takeArrived() {
	b := q.batch
	if b == nil {
		return
	}
	for b.next < len(b.arrived) {
		tag := b.arrived[b.next]
		b.next++
		q.fetched(tag)
	}
	b.arrived, b.next = b.arrived[:0], 0
}

// flush hands the results of this turn to the driver. It returns how many
// completions that is bound to bring at once, besides those worth waiting for.
func (q *queue) flush() uint32 {
	b := q.batch
	if b == nil {
		return 0
	}
	l := &b.lists[b.fill]
	if l.n == 0 || b.lists[1-b.fill].sent {
		return 0
	}
	q.batchCommand(ioCommitIOCmds, l.elems[:l.n]).UserData = kindCommit | uint64(b.fill)
	l.sent = true
	b.fill = 1 - b.fill
	return 1
}

// unflushed says that the driver has not had all results.
func (q *queue) unflushed() bool {
	return q.batch != nil && (q.batch.lists[0].n > 0 || q.batch.lists[1].n > 0)
}

// committed: the driver has had a list of results. It answers how many bytes of
// it it has handled; a result that it refuses, which would be a mistake of this
// server, ends the list, and the rest is sent again without it. Its request waits
// for a successor, as in ended.
func (q *queue) committed(list uint16, res int32) {
	b := q.batch
	l := &b.lists[list&1]
	n := l.n
	l.n, l.sent = 0, false
	if int(res) == n*elemBytes {
		return
	}
	handled := max(int(res), 0) / elemBytes
	q.fail(fmt.Errorf("tag %d: the driver refused its result with %d", l.elems[handled].Tag, res))
	for _, e := range l.elems[handled+1 : n] {
		// The other list has room: a tag is in one list only.
		b.add(e)
	}
}
