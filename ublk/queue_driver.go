package ublk

import (
	"fmt"
	"unsafe"

	"github.com/swapback/swapback/ublk/uring"
	"golang.org/x/sys/unix"
)

// This file is the queue's side of the talk with the driver: how requests are
// fetched and answered, one command for each or many at once, and how the pages
// of a zero-copy request are registered.

// commit answers the tag's request and fetches its next one.
func (q *queue) commit(tag uint16, res int32) {
	if s := &q.slots[tag]; s.manual {
		s.manual = false
		q.unregisterPages(tag)
	}
	if q.batch != nil {
		q.batch.add(q.element(tag, res))
	} else {
		q.command(tag, ioCommitAndFetchReq, res)
	}
	q.current = -1
}

// command is a FETCH or COMMIT_AND_FETCH of one tag.
func (q *queue) command(tag uint16, op uint32, res int32) {
	e := q.entry()
	e.PrepCmd(fileChar, op)
	e.Flags |= uring.SQEFixedFile
	e.UserData = kindFetch | uint64(tag)
	cmd := (*ioCmd)(unsafe.Pointer(&e.Cmd[0]))
	cmd.QID, cmd.Tag, cmd.Result = uint16(q.id), tag, res
	if q.path == DataPathCopy {
		cmd.Addr = uint64(q.bufferAddr(tag))
	} else {
		e.Addr = autoBufReg(q.bufferIndex(tag), autoBufRegFallback)
	}
}

// bufferIndex is where in the ring's table the driver puts the pages of the
// tag's next request.
func (q *queue) bufferIndex(tag uint16) uint16 {
	if q.unregistrable {
		return ^uint16(0)
	}
	return tag
}

// fetchedOK takes the result of a tag's command. When it is not a request, the
// driver gives the tag up.
func (q *queue) fetchedOK(tag uint16, res int32) bool {
	if res == ioResOK {
		return true
	}
	q.ended(fmt.Sprintf("tag %d", tag), res)
	return false
}

// ended: a command will fetch no more. UBLK_IO_RES_ABORT is the orderly end; a
// cancelled command ends in the same way. Else the tag's request, if it has one,
// is the driver's still, and only a successor gets it again.
func (q *queue) ended(what string, res int32) {
	q.live--
	if e := unix.Errno(-res); e != unix.ENODEV && e != unix.ECANCELED {
		q.fail(fmt.Errorf("%s: the driver refused to fetch: %w", what, e))
	}
}

// registerPages puts a request's pages into the tag's slot of the table, which
// the driver could not do by itself.
func (q *queue) registerPages(tag uint16) {
	q.tally.fallbacks++
	q.tally.publishRare(&q.stats)
	q.pagesCommand(tag, ioRegisterIOBuf).UserData = kindRegister | uint64(tag)
	q.current = -1
}

func (q *queue) pagesRegistered(tag uint16, res int32) {
	q.current = int(tag)
	if res < 0 {
		q.slots[tag].manual = false
		q.flight--
		q.answer(tag, res)
		return
	}
	q.forward(tag)
}

// unregisterPages goes ahead of the commit, in the same ring.
func (q *queue) unregisterPages(tag uint16) {
	e := q.pagesCommand(tag, ioUnregisterIOBuf)
	e.Flags |= uring.SQECQESkipSuccess
	e.UserData = kindIgnored
}

func (q *queue) pagesCommand(tag uint16, op uint32) *uring.SQE {
	e := q.entry()
	e.PrepCmd(fileChar, op)
	e.Flags |= uring.SQEFixedFile
	*(*ioCmd)(unsafe.Pointer(&e.Cmd[0])) = ioCmd{QID: uint16(q.id), Tag: tag, Addr: uint64(tag)}
	return e
}

func (q *queue) armWake() {
	e := q.entry()
	e.PrepRead(fileWake, uintptr(unsafe.Pointer(&wakeSink)), 8, ^uint64(0))
	e.Flags |= uring.SQEFixedFile
	e.UserData = kindWake
}

// entry gives a free submission entry. When there is none, which only requests
// that are cut or whose pages are registered by hand can bring about, the ring is
// emptied first.
func (q *queue) entry() *uring.SQE {
	for {
		if e := q.ring.NextSQE(); e != nil {
			return e
		}
		if err := q.ring.Enter(0); err != nil {
			panic(err)
		}
	}
}
