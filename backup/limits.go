package backup

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"

	"github.com/swapback/swapback/backup/internal/format"
)

// What a repository says is believed within these bounds only: it may have been
// made by somebody who wants to do harm.
const (
	// maxVolumes bounds the volumes in a backup, and its tags.
	maxVolumes = 4096
	// maxNoted bounds the packs in a note of garbage, and its leases. It is 2 TiB
	// in full packs; what is beyond them is noted when they have gone.
	maxNoted = 1 << 16
	// maxOther bounds what a verification tells of packs. A few nodes can name
	// one chunk as often as they like.
	maxOther = 1000
	// maxMissed bounds the ranges that a MissedError names of one volume.
	maxMissed = 1000
	// maxBecause bounds the text that says why a backup is a full one, in bytes.
	maxBecause = 1000
)

// manifest is how a Backup is decoded: two bytes of JSON can be a volume, which
// takes hundreds in memory.
type manifest struct {
	Backup
	Created moment                `json:"created"`
	Volumes bounded[BackupVolume] `json:"volumes"`
	Tags    bounded[string]       `json:"tags"`
}

func (m manifest) backup() Backup {
	m.Backup.Created, m.Backup.Volumes, m.Backup.Tags = m.Created.Time, m.Volumes, m.Tags
	m.Backup.Damaged = ""
	return m.Backup
}

// moment is a time that can be encoded again, which not all that are decoded can,
// and is not decoded from a long text: the error would have it several times.
type moment struct{ time.Time }

func (m *moment) UnmarshalJSON(text []byte) error {
	if len(text) > 64 {
		return fmt.Errorf("%d bytes where a time belongs", len(text))
	}
	if err := m.Time.UnmarshalJSON(text); err != nil {
		return err
	}
	_, err := m.Time.MarshalJSON()
	return err
}

// bounded is a list that can't be decoded from more than maxVolumes items.
type bounded[T any] []T

func (l *bounded[T]) UnmarshalJSON(text []byte) error {
	return decodeList((*[]T)(l), text, maxVolumes)
}

// noted is a list that can't be decoded from more than maxNoted names.
type noted []string

func (l *noted) UnmarshalJSON(text []byte) error {
	return decodeList((*[]string)(l), text, maxNoted)
}

// decodeList decodes a list of at most so many items.
func decodeList[T any](l *[]T, text []byte, most int) error {
	*l = nil
	dec := json.NewDecoder(bytes.NewReader(text))
	switch t, err := dec.Token(); {
	case err != nil:
		return err
	case t == nil: // null
		return nil
	case t != json.Delim('['):
		return fmt.Errorf("%.20v where a list belongs", t)
	}
	for dec.More() {
		if len(*l) == most {
			return fmt.Errorf("a list has more than %d items", most)
		}
		var item T
		if err := dec.Decode(&item); err != nil {
			return err
		}
		*l = append(*l, item)
	}
	return nil
}

// checkTexts refuses what would do something to the terminal that shows it.
func (b Backup) checkTexts() error {
	texts := append([]string{b.Job, b.Step}, b.Tags...)
	if b.CopiedFrom != nil {
		texts = append(texts, b.CopiedFrom.Repository, b.CopiedFrom.Backup)
	}
	for _, v := range b.Volumes {
		texts = append(texts, v.Pool, v.Name, v.UUID, v.PositionID, v.FullBecause)
	}
	for _, s := range texts {
		if strings.ContainsFunc(s, unicode.IsControl) {
			return fmt.Errorf("%.80q has a control character", s)
		}
	}
	control := func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }
	if strings.ContainsFunc(b.Comment, control) {
		return fmt.Errorf("comment %.80q has a control character", b.Comment)
	}
	if len(b.Tags) > maxVolumes {
		return fmt.Errorf("%d tags are more than %d", len(b.Tags), maxVolumes)
	}
	return nil
}

// checkCounts checks the figures of a manifest whose sizes are checked.
func (b Backup) checkCounts() error {
	var sum int64
	for i, v := range b.Volumes {
		if v.DataBytes < 0 || v.ZeroBytes < 0 || v.DataBytes > v.Size || v.DataBytes+v.ZeroBytes != v.Size ||
			v.ReusedBytes < 0 || v.ReusedBytes > v.DataBytes || v.StoredBytes < 0 || v.StoredBytes > math.MaxInt64/maxVolumes {
			return fmt.Errorf("%w: the figures of volume %d do not add up", format.ErrCorrupt, i)
		}
		if v.ReadBytes < 0 || v.ReadBytes > v.Size || v.ChangedBytes < 0 || v.ChangedBytes > v.ReadBytes ||
			v.Base == "" && v.ChangedBytes != 0 || v.Base != "" && (!validID(v.Base) || v.FullBecause != "") || len(v.FullBecause) > maxBecause {
			return fmt.Errorf("%w: what volume %d was made against does not add up", format.ErrCorrupt, i)
		}
		if sum += v.Size; sum < 0 {
			return fmt.Errorf("%w: its volumes have more bytes than can be counted", format.ErrCorrupt)
		}
	}
	return nil
}
