package dmswap

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// The body of a metadata slot is JSON, one record per line, so that
// `dd if=DISK bs=4096 skip=3 | less` shows a person what is where:
//
//	{"swapback":1,"generation":7,"previous":6,
//	"pool":{"uuid":…,"name":…,"created":…,"extent_size":…},
//	"members":[
//	{"uuid":…,"index":0,"extents":…,"data_offset":…,"path":…}
//	],
//	"volumes":[
//	{"uuid":…,"name":…,"size":…,"created":…,"position":…,"device_number":…,"attached":…,"read_only":…,"export":{…},"reservations":{…}}
//	],
//	"positions":[
//	{"id":…,"generation":…,"stripe_size":…,"segments":["256@0:12"],"descends_from":…,"base":{…},"quarantine":{…}}
//	],
//	"snapshots":[
//	{"volume":…,"opened":…,"segments":[…]}
//	],
//	"missing":[
//	{"member":1,"holds":41}
//	],
//	"epochs":[
//	{"number":1,"id":…,"first":43}
//	]}
//
// Previous is the generation that was committed before this one; numbers of
// commits that failed are left out. Sizes and offsets are bytes. A segment is EXTENTS@MEMBER:START, with
// +MEMBER:START for every further stripe. The path of a member is where it was
// last seen, for people only. A snapshot is the reservation of the extents that
// an open snapshot keeps old data in; it ends with the process that opened it.
// Base is what the change map counts from, see extmap: {"backup":…,"size":…,
// "since":…,"generation":…}, or {"generation":…,"why":…} when it counts from
// nothing; it is left out until a backup has been made.
// Export is {"hosts":[…],"authenticate":true}, what other hosts may use the volume; it is
// left out when none may, and authenticate when it is false. Reservations are what those
// hosts have reserved, {"type":1,"registrants":[{"host":…,"key":1,"holder":true}]}; they are
// left out when there are none.
// Missing and epochs are left out while they are empty, see lineage.go. An
// unknown field is an error: whoever wrote it meant something by it.
const metadataVersion = 1

type metadata struct {
	Version    int                     `json:"swapback"`
	Generation uint64                  `json:"generation"`
	Previous   uint64                  `json:"previous"`
	Pool       poolRecord              `json:"pool"`
	Members    records[memberRecord]   `json:"members"`
	Volumes    records[volumeRecord]   `json:"volumes"`
	Positions  records[positionRecord] `json:"positions"`
	Snapshots  records[snapshotRecord] `json:"snapshots"`
	Missing    []missingRecord         `json:"missing"` // by member
	Epochs     records[epoch]          `json:"epochs"`  // the newest ones, in order
}

type poolRecord struct {
	UUID       UUID      `json:"uuid"`
	Name       string    `json:"name"`
	Created    time.Time `json:"created"`
	ExtentSize int64     `json:"extent_size"`
}

type memberRecord struct {
	UUID       UUID   `json:"uuid"`
	Index      int    `json:"index"`
	Extents    int64  `json:"extents"`
	DataOffset int64  `json:"data_offset"`
	Path       string `json:"path,omitempty"`
}

type volumeRecord struct {
	UUID         UUID          `json:"uuid"`
	Name         string        `json:"name"`
	Size         int64         `json:"size"`
	Created      time.Time     `json:"created"`
	Position     UUID          `json:"position"`
	DeviceNumber int           `json:"device_number"`
	Attached     bool          `json:"attached"`
	ReadOnly     bool          `json:"read_only"`
	Export       *Export       `json:"export,omitempty"`
	Reservations *Reservations `json:"reservations,omitempty"`
}

type positionRecord struct {
	ID           UUID        `json:"id"`
	Generation   uint64      `json:"generation"`
	StripeSize   int64       `json:"stripe_size,omitempty"`
	Segments     []Segment   `json:"segments"`
	DescendsFrom string      `json:"descends_from,omitempty"`
	Base         *Base       `json:"base,omitempty"`
	Quarantine   *Quarantine `json:"quarantine,omitempty"`
}

type snapshotRecord struct {
	Volume   UUID      `json:"volume"`
	Opened   time.Time `json:"opened"`
	Segments []Segment `json:"segments"`
}

// stripes is over how many members the position is striped; 1 is linear. A
// position keeps its number of stripes when it grows.
func (p *positionRecord) stripes() int {
	if len(p.Segments) == 0 {
		return 1
	}
	return len(p.Segments[0].Stripes)
}

// onMembers lists the members that the position lies on, in no order and some
// more than once.
func (p *positionRecord) onMembers() (list []int) {
	for _, s := range p.Segments {
		for _, st := range s.Stripes {
			list = append(list, st.Member)
		}
	}
	return list
}

// records is a list of records as it is decoded. A disk may have been made by
// somebody who wants to do harm: two bytes of text could be a record, which takes
// a hundred in memory.
type records[T any] []T

// minRecord is less than any record takes as text: each has a UUID.
const minRecord = 48

func (l *records[T]) UnmarshalJSON(text []byte) error {
	*l = nil
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	switch t, err := dec.Token(); {
	case err != nil:
		return err
	case t == nil: // null
		return nil
	case t != json.Delim('['):
		return fmt.Errorf("%v where a list of records belongs", t)
	}
	for dec.More() {
		var r T
		if err := dec.Decode(&r); err != nil {
			return err
		}
		*l = append(*l, r)
		if at := dec.InputOffset(); at < int64(len(*l))*minRecord {
			return fmt.Errorf("%d records in %d bytes", len(*l), at)
		}
	}
	return nil
}

// encode returns the body. Records that hold no text of users are still
// checked by json.Marshal, so an error is a bug or an invalid time.
func (m *metadata) encode() ([]byte, error) {
	var b bytes.Buffer
	var errs []error
	// What users write stays as they wrote it: this is no web page.
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	line := func(v any) {
		errs = append(errs, enc.Encode(v))
		b.Truncate(max(b.Len()-1, 0)) // the encoder's newline
	}
	fmt.Fprintf(&b, `{"swapback":%d,"generation":%d,"previous":%d,`+"\n"+`"pool":`, m.Version, m.Generation, m.Previous)
	line(m.Pool)
	list := func(name string, n int, at func(i int) any) {
		fmt.Fprintf(&b, ",\n%q:[", name)
		for i := range n {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteByte('\n')
			line(at(i))
		}
		b.WriteString("\n]")
	}
	list("members", len(m.Members), func(i int) any { return m.Members[i] })
	list("volumes", len(m.Volumes), func(i int) any { return m.Volumes[i] })
	list("positions", len(m.Positions), func(i int) any { return m.Positions[i] })
	list("snapshots", len(m.Snapshots), func(i int) any { return m.Snapshots[i] })
	if len(m.Missing) > 0 {
		list("missing", len(m.Missing), func(i int) any { return m.Missing[i] })
	}
	if len(m.Epochs) > 0 {
		list("epochs", len(m.Epochs), func(i int) any { return m.Epochs[i] })
	}
	b.WriteString("}\n")
	return b.Bytes(), errors.Join(errs...)
}

// decodeMetadata reads a body and checks it.
func decodeMetadata(body []byte) (*metadata, error) {
	m := &metadata{}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("metadata: more follows the last brace")
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	return m, nil
}

// clone copies what an operation may change. Segments, quarantine labels, exports and
// the lineage are never changed in place.
func (m *metadata) clone() *metadata {
	c := *m
	c.Members = slices.Clone(m.Members)
	c.Volumes = slices.Clone(m.Volumes)
	c.Positions = slices.Clone(m.Positions)
	c.Snapshots = slices.Clone(m.Snapshots)
	return &c
}

// volume finds a volume by name or UUID; nil if there is none.
func (m *metadata) volume(ref string) *volumeRecord {
	for i := range m.Volumes {
		if v := &m.Volumes[i]; v.Name == ref || v.UUID == ref {
			return v
		}
	}
	return nil
}

func (m *metadata) position(id UUID) *positionRecord {
	for i := range m.Positions {
		if p := &m.Positions[i]; p.ID == id {
			return p
		}
	}
	return nil
}

func (m *metadata) snapshot(volume UUID) *snapshotRecord {
	for i := range m.Snapshots {
		if s := &m.Snapshots[i]; s.Volume == volume {
			return s
		}
	}
	return nil
}

// drop removes the records for which match returns true.
func drop[T any](list []T, match func(*T) bool) []T {
	out := make([]T, 0, len(list))
	for i := range list {
		if !match(&list[i]) {
			out = append(out, list[i])
		}
	}
	return out
}

// check holds every invariant of the metadata. It runs on what is read and on
// what is about to be written, so that a bug can't give an extent two owners.
func (m *metadata) check() error {
	if m.Version != metadataVersion {
		return fmt.Errorf("%w: version %d, this program knows %d", errNewer, m.Version, metadataVersion)
	}
	if m.Generation == 0 || m.Previous >= m.Generation {
		return fmt.Errorf("generation %d after %d", m.Generation, m.Previous)
	}
	if !validName(m.Pool.Name) || !validUUID(m.Pool.UUID) {
		return fmt.Errorf("pool %q %q: bad name or UUID", m.Pool.Name, m.Pool.UUID)
	}
	es := m.Pool.ExtentSize
	if !isPowerOfTwo(es) || es < minExtentSize || es > maxExtentSize {
		return fmt.Errorf("extent size %d", es)
	}
	if err := m.checkMembers(); err != nil {
		return err
	}
	if err := m.checkLineage(); err != nil {
		return err
	}
	if err := m.checkVolumes(); err != nil {
		return err
	}
	_, err := m.owners(nil)
	return err
}

func (m *metadata) checkMembers() error {
	if len(m.Members) == 0 || len(m.Members) > maxMembers {
		return fmt.Errorf("%d members", len(m.Members))
	}
	seen := map[UUID]bool{}
	for i, d := range m.Members {
		if d.Index != i || !validUUID(d.UUID) || seen[d.UUID] || d.Extents < 1 || d.Extents > (1<<62)/m.Pool.ExtentSize ||
			d.DataOffset < 0 || d.DataOffset%m.Pool.ExtentSize != 0 || d.DataOffset > 1<<40 {
			return fmt.Errorf("member %d is not valid", i)
		}
		seen[d.UUID] = true
	}
	return nil
}

func (m *metadata) checkVolumes() error {
	positions := map[UUID]*positionRecord{}
	for i := range m.Positions {
		p := &m.Positions[i]
		if !validUUID(p.ID) || positions[p.ID] != nil || p.Generation == 0 {
			return fmt.Errorf("position %q is not valid", p.ID)
		}
		if err := m.checkSegments(p.Segments, p.StripeSize); err != nil {
			return fmt.Errorf("position %s: %w", p.ID, err)
		}
		if b := p.Base; b != nil && (b.Generation == 0 || b.Size < 0 || b.Backup != "" && (b.Size < blockSize || b.Why != "") || b.Backup == "" && b.Size != 0) {
			return fmt.Errorf("position %s: base %q of %d bytes, generation %d", p.ID, b.Backup, b.Size, b.Generation)
		}
		positions[p.ID] = p
	}
	names, uuids := map[string]bool{}, map[UUID]bool{}
	for _, v := range m.Volumes {
		if !validName(v.Name) || !validUUID(v.UUID) || names[v.Name] || uuids[v.UUID] {
			return fmt.Errorf("volume %q %q: bad or repeated name or UUID", v.Name, v.UUID)
		}
		names[v.Name], uuids[v.UUID] = true, true
		if v.Export != nil {
			if err := v.Export.check(); err != nil {
				return fmt.Errorf("volume %s: %w", v.Name, err)
			}
		}
		if v.Reservations != nil {
			if v.Export == nil {
				return fmt.Errorf("volume %s is reserved and not exported", v.Name)
			}
			if err := v.Reservations.check(); err != nil {
				return fmt.Errorf("volume %s: %w", v.Name, err)
			}
		}
		p := positions[v.Position]
		if p == nil {
			return fmt.Errorf("volume %s: its position %s does not exist or belongs to another volume", v.Name, v.Position)
		}
		if room := countExtents(p.Segments) * m.Pool.ExtentSize; v.Size < blockSize || v.Size%blockSize != 0 || v.Size > room {
			return fmt.Errorf("volume %s: size %d on %d bytes of extents", v.Name, v.Size, room)
		}
		delete(positions, v.Position)
	}
	for id := range positions {
		return fmt.Errorf("position %s belongs to no volume", id)
	}
	seen := map[UUID]bool{}
	for _, s := range m.Snapshots {
		if !uuids[s.Volume] || seen[s.Volume] {
			return fmt.Errorf("snapshot of volume %q: no such volume, or a second one", s.Volume)
		}
		seen[s.Volume] = true
		if err := m.checkSegments(s.Segments, 0); err != nil {
			return fmt.Errorf("snapshot of volume %s: %w", s.Volume, err)
		}
	}
	return nil
}

// checkSegments checks one list of segments by itself; overlaps are found by
// owners.
func (m *metadata) checkSegments(segments []Segment, stripeSize int64) error {
	if len(segments) == 0 {
		return errors.New("it has no segments")
	}
	stripes := len(segments[0].Stripes)
	if stripes > 1 && (!isPowerOfTwo(stripeSize) || stripeSize < blockSize || stripeSize > m.Pool.ExtentSize) || stripes == 1 && stripeSize != 0 {
		return fmt.Errorf("stripe size %d", stripeSize)
	}
	for _, s := range segments {
		if s.Extents < 1 || len(s.Stripes) != stripes || stripes == 0 {
			return fmt.Errorf("segment %s is not valid", s)
		}
		on := map[int]bool{}
		for _, st := range s.Stripes {
			if st.Member < 0 || st.Member >= len(m.Members) || on[st.Member] ||
				st.Start < 0 || st.Start > m.Members[st.Member].Extents-s.Extents {
				return fmt.Errorf("segment %s is outside its member, or two of its stripes are on one", s)
			}
			on[st.Member] = true
		}
	}
	return nil
}

// run is a stretch of extents of one member and whose it is.
type run struct {
	start, count int64
	owner        string
}

// owners returns the used runs of every member in order, together with the
// pending ones, and an error that names both owners when two overlap.
func (m *metadata) owners(pending map[string][]Segment) ([][]run, error) {
	used := make([][]run, len(m.Members))
	add := func(owner string, segments []Segment) {
		for _, s := range segments {
			for _, st := range s.Stripes {
				used[st.Member] = append(used[st.Member], run{st.Start, s.Extents, owner})
			}
		}
	}
	for _, p := range m.Positions {
		add("position "+p.ID, p.Segments)
	}
	for _, s := range m.Snapshots {
		add("snapshot of volume "+s.Volume, s.Segments)
	}
	for owner, segments := range pending {
		add(owner, segments)
	}
	for i := range used {
		slices.SortFunc(used[i], func(a, b run) int {
			if a.start != b.start {
				return int(min(max(a.start-b.start, -1), 1))
			}
			return strings.Compare(a.owner, b.owner)
		})
		for j := 1; j < len(used[i]); j++ {
			if a, b := used[i][j-1], used[i][j]; a.start+a.count > b.start {
				return nil, fmt.Errorf("extent %d of member %d belongs to %s and to %s", b.start, i, a.owner, b.owner)
			}
		}
	}
	return used, nil
}
