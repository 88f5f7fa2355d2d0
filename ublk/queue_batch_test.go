package ublk

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchQueue is a queue with lists of results, and no ring.
func batchQueue(t *testing.T, depth int) (*queue, *bytes.Buffer) {
	t.Helper()
	log := &bytes.Buffer{}
	q := &queue{queueConfig: queueConfig{depth: depth, gate: &gate{}, broke: func(err error) { fmt.Fprintln(log, err) }}, slots: make([]slot, depth)}
	q.batch = &batch{}
	for i := range q.batch.lists {
		q.batch.lists[i].elems = make([]batchElem, depth)
	}
	return q, log
}

func TestBatchListTakesTurns(t *testing.T) {
	q, log := batchQueue(t, 4)
	q.commit(1, 4096)
	q.commit(3, -5)
	b := q.batch
	if want := []batchElem{{Tag: 1, BufIndex: 1, Result: 4096}, {Tag: 3, BufIndex: 3, Result: -5}}; b.lists[0].n != 2 ||
		b.lists[0].elems[0] != want[0] || b.lists[0].elems[1] != want[1] {
		t.Fatalf("list: %+v", b.lists[0])
	}
	// As flush does.
	b.lists[0].sent, b.fill = true, 1
	q.commit(2, 512)
	if !q.unflushed() {
		t.Error("results are waiting, and unflushed says no")
	}
	q.committed(0, 2*int32(elemBytes))
	if b.lists[0].n != 0 || b.lists[0].sent || b.lists[1].n != 1 || log.Len() != 0 {
		t.Errorf("after the answer: %+v, log %s", b.lists, log)
	}
}

// A result that the driver refuses does not take the others with it.
func TestBatchSendsTheRestAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		res  int32
		want []uint16
	}{
		"the first":  {-int32(unix.EBUSY), []uint16{1, 2, 3}},
		"the second": {int32(elemBytes), []uint16{2, 3}},
		"the last":   {3 * int32(elemBytes), nil},
	} {
		q, log := batchQueue(t, 4)
		for tag := range uint16(4) {
			q.commit(tag, 512)
		}
		q.batch.lists[0].sent, q.batch.fill = true, 1
		q.committed(0, tc.res)
		l := q.batch.lists[1]
		if l.n != len(tc.want) || log.Len() == 0 {
			t.Fatalf("%s: %+v, log %q", name, l, log)
		}
		for i, tag := range tc.want {
			if l.elems[i].Tag != tag {
				t.Errorf("%s: tag %d in place %d, want %d", name, l.elems[i].Tag, i, tag)
			}
		}
	}
}

func TestDescriptorsOfOneDeviceLieApart(t *testing.T) {
	// The stride between queues is made for the greatest depth, and whole pages.
	page := os.Getpagesize()
	if got, want := descOffset(1, page), int64(roundUp(MaxDepth*int(unsafe.Sizeof(ioDesc{})), page)); got != want {
		t.Errorf("queue 1 at %d, want %d", got, want)
	}
}
