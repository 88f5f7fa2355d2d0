//go:build vm

package power

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/swapback/swapback/soak/power/logwrites"
)

// firstTrace is the first operation that changed what the pool shows after a
// write with FUA was acknowledged, and the last such write before it.
func firstTrace(t *testing.T, j *journal) (op *operation, write *record) {
	for i := 1; i < len(j.ops); i++ {
		if j.ops[i].after.text == j.ops[i-1].after.text {
			continue // a snapshot leaves no trace
		}
		for _, r := range j.records {
			if r.stream == 0 && !r.met && r.ack > 0 && r.ack < j.ops[i].begin {
				write = r
			}
		}
		if write != nil {
			return &j.ops[i], write
		}
	}
	t.Fatal("no operation that changed something came behind a write with FUA")
	return nil, nil
}

// seesLies leaves out of the log what was acknowledged, as a disk does that
// ignores FUA: the test has to find it missing.
func seesLies(t *testing.T, j *journal, log *logwrites.Log) {
	op, write := firstTrace(t, j)
	for _, tt := range []struct {
		name  string
		event int
		lie   func(e logwrites.Entry, data []byte) bool
		want  string
	}{
		{"metadata", op.end, isHeader, "the pool shows"},
		{"data", write.ack, func(e logwrites.Entry, data []byte) bool {
			return e.Has(logwrites.FUA) && len(data) == blockSize && bytes.Equal(data[:8], binary.LittleEndian.AppendUint64(nil, write.id))
		}, "acknowledged as durable"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mark := slices.IndexFunc(log.Entries, func(e logwrites.Entry) bool { return e.Text == eventText(tt.event) })
			from := mark
			if tt.name == "metadata" {
				from = slices.IndexFunc(log.Entries, func(e logwrites.Entry) bool { return e.Text == eventText(op.begin) })
			} else {
				from = 0
			}
			lying := *log
			lying.Entries = nil
			for i, e := range log.Entries[:mark+1] {
				if i > from && e.HasData() && e.Has(logwrites.FUA) {
					data, err := log.Data(e)
					if err != nil {
						t.Fatal(err)
					}
					if tt.lie(e, data) {
						continue
					}
				}
				lying.Entries = append(lying.Entries, e)
			}
			if left := mark + 1 - len(lying.Entries); left == 0 {
				t.Fatal("there was nothing to leave out")
			}
			mustSee(t, j, &lying, len(lying.Entries), inOrder, tt.want)
		})
	}
}

// mustSee cuts the power in a log that lies, and wants the lie to be found.
func mustSee(t *testing.T, j *journal, lying *logwrites.Log, at, survival int, want string) {
	t.Helper()
	b := newBench(t, j, lying, 0)
	patches := b.goTo(at, survival)
	problems := b.openPool(false)
	b.scratch.Reset(patches, true)
	if text := strings.Join(problems, "\n"); !strings.Contains(text, want) {
		t.Errorf("the lie was not seen: %q", text)
	}
}

// seesDroppedFlushes has flushes answered that did not reach the disk: what waited
// for them stands in the log behind the answer, with the next flush that did.
func seesDroppedFlushes(t *testing.T, j *journal, log *logwrites.Log) {
	if _, err := j.setDue(log); err != nil {
		t.Fatal(err)
	}
	marks := map[int]int{} // entry by event
	for i, e := range log.Entries {
		var n int
		if _, err := fmt.Sscanf(e.Text, "e%d", &n); err == nil {
			marks[n] = i
		}
	}
	t.Run("one", func(t *testing.T) {
		write := ownFlush(t, j, log, marks)
		ack := marks[write.ack]
		lying := *log
		lying.Entries = slices.Clone(log.Entries[:marks[write.flush]+1])
		var later []logwrites.Entry
		for _, e := range log.Entries[len(lying.Entries) : ack+1] {
			if e.Has(logwrites.Mark | logwrites.FUA) {
				e.Flags &^= logwrites.Flush
				lying.Entries = append(lying.Entries, e)
			} else {
				later = append(later, e)
			}
		}
		at := len(lying.Entries)
		lying.Entries = append(lying.Entries, later...)
		mustSee(t, j, &lying, at, nothing, fmt.Sprintf("but %s was acknowledged as durable", name([]*record{write}, 0)))
	})
	t.Run("all, beside flushes of others", func(t *testing.T) {
		later := map[int][]logwrites.Entry{} // by the entry that they come behind
		moved := map[int]bool{}
		for _, r := range j.records {
			if r.flush > 0 && r.ack > 0 && r.entry >= 0 && r.entry < marks[r.ack] {
				later[marks[r.ack]] = append(later[marks[r.ack]], log.Entries[r.entry])
				moved[r.entry] = true
			}
		}
		lying := *log
		lying.Entries = nil
		var waiting []logwrites.Entry
		for i, e := range log.Entries {
			if moved[i] {
				continue
			}
			if e.Has(logwrites.Flush) {
				lying.Entries, waiting = append(lying.Entries, waiting...), nil
			}
			lying.Entries = append(lying.Entries, e)
			waiting = append(waiting, later[i]...)
		}
		late, err := j.setDue(&lying)
		if !errors.Is(err, errLate) {
			t.Errorf("of %d writes %d came later than the flush that was answered for them, and it was not seen: %v", len(moved), late, err)
		}
	})
}

// ownFlush finds a write that was durable by the flush that was answered to it,
// while nothing was committed: the last one, as few are before the first.
func ownFlush(t *testing.T, j *journal, log *logwrites.Log, marks map[int]int) *record {
	t.Helper()
	for _, r := range slices.Backward(j.records) {
		if r.flush == 0 || r.ack == 0 || r.met || r.entry < marks[r.flush] || r.entry > marks[r.ack] {
			continue
		}
		if !slices.ContainsFunc(log.Entries[marks[r.flush]:marks[r.ack]], func(e logwrites.Entry) bool {
			return e.HasData() && e.Offset%memberSize < metadataSize
		}) {
			return r
		}
	}
	t.Fatal("no write was made durable by its own flush")
	return nil
}
