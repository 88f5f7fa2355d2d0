package main

import "fmt"

// target is a promise, and how it stands.
type target struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	// Limit is the least that Value may be, or with AtMost the most.
	Limit  float64 `json:"limit"`
	AtMost bool    `json:"at_most"`
	OK     bool    `json:"ok"`
}

func (t target) String() string {
	op, mark := "≥", "ok"
	if t.AtMost {
		op = "≤"
	}
	if !t.OK {
		mark = "MISSED"
	}
	return fmt.Sprintf("%-58s %6.2f  %s %.2f  %s", t.Name, t.Value, op, t.Limit, mark)
}

// judge compares with what is promised, as far as it was measured.
func judge(rep report) []target {
	find := func(program, row string) *result {
		for i, r := range rep.Results {
			if r.Program == program && r.Row == row {
				return &rep.Results[i]
			}
		}
		return nil
	}
	var list []target
	faster := func(row, peer, what string, limit float64) {
		if ours, theirs := find("swapback", row), find(peer, row); ours != nil && theirs != nil {
			v := theirs.Seconds / ours.Seconds
			list = append(list, target{Name: what + ": times " + peer + "’s speed", Value: v, Limit: limit, OK: v >= limit})
		}
	}
	atMost := func(what string, v, limit float64) {
		list = append(list, target{Name: what, Value: v, Limit: limit, AtMost: true, OK: v <= limit})
	}
	faster(rowFull, "borg", "full backup", 4)
	faster(rowFull, "restic", "full backup", 6)
	faster(rowUnchanged, "restic", "unchanged, without a change map", 4)
	ours, borg, restic := find("swapback", rowFull), find("borg", rowFull), find("restic", rowFull)
	if ours != nil && borg != nil && restic != nil {
		atMost("stored by a full backup, of the smaller peer’s", float64(ours.Stored)/float64(min(borg.Stored, restic.Stored)), 1.05)
	}
	faster(rowRestore, "borg", "restore", 3)
	faster(rowRestore, "restic", "restore", 6)
	if ours, cp := find("swapback", rowRestore), find("cp", rowRestore); ours != nil && cp != nil {
		atMost("restore, of the time of cp and fsync", ours.Seconds/cp.Seconds, 1.3)
	}
	// What comes from the page cache is not counted as read.
	if ours := find("swapback", rowIncremental); ours != nil && rep.ChangedChunks > 0 && rep.Cache == cacheCold {
		atMost("incremental: read, of the chunks that were written to", float64(ours.ReadBytes)/float64(rep.ChangedChunks), 1.1)
	}
	return list
}
