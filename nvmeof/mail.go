package nvmeof

import (
	"slices"

	"github.com/swapback/swapback/nvmeof/wire"
)

// mail is what others ask of a queue: to answer a command that waits for them, or to
// abort one. It is rare, and waits until the queue looks at it.
type mail struct {
	command uint16 // index of the command to answer, with success
	result  uint64

	heard *heard // of that command, instead
	abort *abort // instead of all that
}

// abort is the wish of an admin queue.
type abort struct {
	cid     uint16
	admin   *queue
	command uint16 // index of the Abort, in the admin queue
}

// post hands the queue a letter, from any goroutine.
func (q *queue) post(m mail) {
	q.waking.Lock()
	ended := q.mailClosed
	if !ended {
		q.mail = append(q.mail, m)
	}
	q.waking.Unlock()
	if ended {
		m.returned()
		return
	}
	q.wake()
}

// returned: the queue has ended. Who wanted a command of it aborted hears that it was
// not; what waits for an answer has ended with the queue.
func (m mail) returned() {
	if a := m.abort; a != nil {
		a.admin.post(mail{command: a.command, result: notAborted})
	}
}

// notAborted is the result of an Abort that found nothing to abort (Base 5.1).
const notAborted = 1

func (q *queue) readMail() {
	for _, m := range q.takeMail(false) {
		switch {
		case m.abort != nil:
			q.abortHeld(m.abort)
		case m.heard != nil:
			q.authenticated(&q.commands[m.command], m.heard)
		default:
			q.answer(&q.commands[m.command], wire.Success, m.result)
		}
	}
}

// closeMail returns what was not read, and what comes from now on.
func (q *queue) closeMail() {
	for _, m := range q.takeMail(true) {
		m.returned()
	}
}

func (q *queue) takeMail(last bool) []mail {
	q.waking.Lock()
	defer q.waking.Unlock()
	list := q.mail
	q.mail, q.mailClosed = nil, last
	return list
}

// abortHeld ends a command that a gate keeps. One that is at a disk is not aborted: it
// cannot be called back.
func (q *queue) abortHeld(a *abort) {
	reply := mail{command: a.command, result: notAborted}
	i := slices.IndexFunc(q.held, func(i uint16) bool { return q.commands[i].sqe.CID == a.cid })
	if i >= 0 {
		c := &q.commands[q.held[i]]
		q.held = slices.Delete(q.held, i, i+1)
		q.answer(c, wire.AbortRequested, 0)
		reply.result = 0
	}
	a.admin.post(reply)
}
