//go:build vm

package power

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/swapback/swapback/soak/power/logwrites"
)

var errLate = errors.New("flushed later")

// setDue works out from which entry of the log on each acknowledged write has to
// be there, and returns how many that is later than their acknowledgement.
//
// dm-log-writes gives what is in the cache to the next flush that begins, and logs
// it when that one ends. A flush of somebody else may take a write along and end
// behind the flush that was answered to the write's stream: both are right, and
// the disk has it, but the log has it after the acknowledgement. Such a write is
// due with the flush that the log has it before, if any flush at all ended in
// between: the one that was answered. When that is so for many, their flushes did
// not reach the disk, which is [errLate].
func (j *journal) setDue(log *logwrites.Log) (late int, err error) {
	marks := map[string]int{}
	flushes := make([]int, len(log.Entries)+1) // before each entry
	for _, r := range j.records {
		r.entry = -1
	}
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
			return 0, err
		}
		for ; len(data) >= blockSize; data = data[blockSize:] {
			id := binary.LittleEndian.Uint64(data)
			if id == 0 || id > uint64(len(j.records)) {
				continue
			}
			r := j.records[id-1]
			stamped(id, r.block, whole)
			if r.entry < 0 && bytes.Equal(data[:blockSize], whole) {
				r.entry = i
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
		at := r.entry
		if r.flush == 0 || at < ack || flushes[ack] == flushes[marks[eventText(r.flush)]] {
			continue
		}
		late++
		for r.due = at + 1; r.due < len(log.Entries) && flushes[r.due] == flushes[at]; {
			r.due++
		}
	}
	if late > acknowledged/10 {
		return late, fmt.Errorf("of %d writes that were acknowledged %d were %w", acknowledged, late, errLate)
	}
	return late, nil
}
