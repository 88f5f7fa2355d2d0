//go:build vm

package power

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/swapback/swapback/soak/power/logwrites"
)

// setDue works out from which entry of the log on each acknowledged write has to
// be there, and returns how many that is later than their acknowledgement.
//
// dm-log-writes gives what is in the cache to the next flush that begins, and logs
// it when that one ends. A flush of somebody else may take a write along and end
// behind the flush that was answered to the write's stream: both are right, and
// the disk has it, but the log has it after the acknowledgement. Such a write is
// due with the flush that the log has it before, if any flush at all ended in
// between: the one that was answered.
func (j *journal) setDue(t *testing.T, log *logwrites.Log) (late int) {
	t.Helper()
	marks := map[string]int{}
	flushes := make([]int, len(log.Entries)+1) // before each entry
	logged := map[uint64]int{}                 // entry by write
	whole := make([]byte, blockSize)
	for i, e := range log.Entries {
		flushes[i+1] = flushes[i]
		switch {
		case e.Has(logwrites.Mark):
			marks[e.Text] = i
		case e.Has(logwrites.Flush):
			flushes[i+1]++
		}
		if !e.HasData() || e.Offset%memberSize < metadataSize {
			continue
		}
		data, err := log.Data(e)
		if err != nil {
			t.Fatal(err)
		}
		for ; len(data) >= blockSize; data = data[blockSize:] {
			id := binary.LittleEndian.Uint64(data)
			if id == 0 || id > uint64(len(j.records)) {
				continue
			}
			stamped(id, j.records[id-1].block, whole)
			if _, ok := logged[id]; !ok && bytes.Equal(data[:blockSize], whole) {
				logged[id] = i
			}
		}
	}
	acknowledged := 0
	for _, r := range j.records {
		ack, ok := marks[eventText(r.ack)]
		if r.ack == 0 || !ok {
			r.due = 0
			continue
		}
		acknowledged++
		r.due = ack + 1
		at, ok := logged[r.id]
		if r.flush == 0 || !ok || at < ack || flushes[ack] == flushes[marks[eventText(r.flush)]] {
			continue
		}
		late++
		for r.due = at + 1; r.due < len(log.Entries) && flushes[r.due] == flushes[at]; {
			r.due++
		}
	}
	// Flushes that do not reach the disk would have all of them late.
	if late > acknowledged/10 {
		t.Errorf("of %d writes that were acknowledged %d were flushed later", acknowledged, late)
	}
	return late
}
