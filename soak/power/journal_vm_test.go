//go:build vm

package power

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/soak/rig"
)

// world is what a pool shows: which volumes there are and what is behind them.
type world struct {
	text      string
	positions map[string]string // by the volume's name
}

func newWorld(volumes []api.Volume) world {
	w := world{positions: map[string]string{}}
	var lines []string
	for _, v := range volumes {
		label := ""
		if v.Position.Quarantine != nil {
			label = v.Position.Quarantine.Reason
		}
		lines = append(lines, fmt.Sprintf("%s: %d bytes, position %s generation %d at %v %q", v.Name, v.Size, v.Position.ID, v.Position.Generation, v.Position.Segments, label))
		w.positions[v.Name] = v.Position.ID
	}
	slices.Sort(lines)
	w.text = strings.Join(lines, "\n")
	return w
}

// asServed gives a volume of the library the form that the API has for it.
func asServed(v dmswap.VolumeInfo) api.Volume {
	out := api.Volume{Name: v.Name, Size: v.Size, Position: api.Position{ID: v.Position.ID, Generation: v.Position.Generation}}
	for _, s := range v.Position.Segments {
		seg := api.Segment{Extents: s.Extents}
		for _, st := range s.Stripes {
			seg.Stripes = append(seg.Stripes, api.SegmentStripe(st))
		}
		out.Position.Segments = append(out.Position.Segments, seg)
	}
	if q := v.Position.Quarantine; q != nil {
		out.Position.Quarantine = &api.Quarantine{Reason: q.Reason}
	}
	return out
}

// operation is one request to the daemon.
type operation struct {
	name       string
	begin, end int // events
	after      world
}

// record is one write of a block to a volume. A write that met a swap may lie
// behind either volume.
type record struct {
	id     uint64
	stream int
	group  int // the writes of one group are acknowledged together
	block  int64
	met    bool // it met a swap
	flush  int  // the event before it was flushed, 0 for a write with FUA
	ack    int  // the event of its acknowledgement, 0 for none
	entry  int  // of the log that has it, -1 for none
	due    int  // after how many entries of the log it has to be there, 0 for never
	at     []string
}

const (
	blockSize  = 4096
	sectorSize = 512
)

// stamped is the content of a block: every sector says which write it is of,
// and all bytes follow from that.
func stamped(id uint64, block int64, b []byte) {
	for at := 0; at < blockSize; at += sectorSize {
		s := b[at : at+sectorSize]
		x := id*0x9e3779b97f4a7c15 + uint64(block)<<8 + uint64(at/sectorSize) + 1
		for i := 8; i < sectorSize; i += 8 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			binary.LittleEndian.PutUint64(s[i:], x)
		}
		binary.LittleEndian.PutUint64(s, id)
	}
}

// stampedBlock is what a write has made of a block; it is the same one for most
// sectors of a block.
type stampedBlock struct {
	block int64
	id    uint64
	data  [blockSize]byte
}

func (s *stampedBlock) of(id uint64) []byte {
	if s.id != id {
		s.id = id
		stamped(id, s.block, s.data[:])
	}
	return s.data[:]
}

var zeroes [rig.MiB]byte

// journal is everything that was acknowledged, numbered by events; each is a
// mark in the log as well.
type journal struct {
	disk *loggedDisk

	mu      sync.Mutex
	events  int
	first   world // before the first operation
	ops     []operation
	records []*record                      // record id is at id-1
	acks    [][]int                        // by stream, the events of its groups, 0 for the present one
	blocks  map[string]map[int64][]*record // by position
	now     map[string]string              // position by volume
	moving  map[string]string              // where a volume under a swap may be by now
	files   []file
}

type file struct {
	name string
	data []byte
	ack  int
}

func newJournal(disk *loggedDisk, streams int) *journal {
	return &journal{disk: disk, acks: make([][]int, streams), blocks: map[string]map[int64][]*record{}, moving: map[string]string{}}
}

// event marks that something has happened.
func (j *journal) event() int {
	j.mu.Lock()
	j.events++
	n := j.events
	j.mu.Unlock()
	j.disk.Mark(fmt.Sprintf("e%d", n))
	return n
}

// start notes the world that is there.
func (j *journal) start(volumes []api.Volume) {
	j.first = newWorld(volumes)
	j.now = maps.Clone(j.first.positions)
}

// operate notes an operation; swaps are the pairs that it swaps.
func (j *journal) operate(name string, swaps [][2]string, do func(), world func() world) {
	op := operation{name: name}
	j.mu.Lock()
	for _, p := range swaps {
		j.moving[p[0]], j.moving[p[1]] = j.now[p[1]], j.now[p[0]]
	}
	j.mu.Unlock()
	op.begin = j.event()
	do()
	op.after = world()
	op.end = j.event()
	j.mu.Lock()
	defer j.mu.Unlock()
	clear(j.moving)
	j.now = maps.Clone(op.after.positions)
	j.ops = append(j.ops, op)
}

// begin notes a write before it is made.
func (j *journal) begin(stream int, volume string, block int64) *record {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := &record{id: uint64(len(j.records) + 1), stream: stream, group: len(j.acks[stream]), block: block}
	j.records = append(j.records, r)
	j.place(r, volume)
	return r
}

// end notes that a write was answered, though nothing is durable yet.
func (j *journal) end(r *record, volume string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.place(r, volume)
}

func (j *journal) place(r *record, volume string) {
	for _, pos := range []string{j.now[volume], j.moving[volume]} {
		if pos == "" || slices.Contains(r.at, pos) {
			continue
		}
		r.at = append(r.at, pos)
		if j.blocks[pos] == nil {
			j.blocks[pos] = map[int64][]*record{}
		}
		j.blocks[pos][r.block] = append(j.blocks[pos][r.block], r)
	}
	r.met = len(r.at) > 1
}

// flushing notes that all of a group was answered and is about to be flushed.
func (j *journal) flushing(group []*record) {
	n := j.event()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range group {
		r.flush = n
	}
}

// durable notes that a group of writes was acknowledged by FUA or a flush.
func (j *journal) durable(group []*record) {
	n := j.event()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range group {
		r.ack = n
	}
	s := group[0].stream
	j.acks[s] = append(j.acks[s], n)
}

// cut is the journal as far as the log had it when the power went.
type cut struct {
	*journal
	entries int // of the log
	seen    map[int]bool
	last    []int // by stream, how many groups were acknowledged
}

func (j *journal) at(entries int, seen map[int]bool) *cut {
	c := &cut{journal: j, entries: entries, seen: seen, last: make([]int, len(j.acks))}
	for s, acks := range j.acks {
		for c.last[s] < len(acks) && seen[acks[c.last[s]]] {
			c.last[s]++
		}
	}
	return c
}

// due tells whether a write has to be there.
func (c *cut) due(r *record) bool { return r.due > 0 && c.entries >= r.due }

// worlds are the one or two that the pool may show, and what was going on.
func (c *cut) worlds() (list []world, doing string) {
	list, doing = []world{c.first}, "no operation"
	for _, op := range c.ops {
		switch {
		case c.seen[op.end]:
			list, doing = []world{op.after}, "after "+op.name
		case c.seen[op.begin]:
			return append(list, op.after), "during " + op.name
		}
	}
	return list, doing
}

// checkBlocks looks at the blocks of a position and returns what is wrong. It
// adds to shown how new each block is.
func (c *cut) checkBlocks(pos string, read func(block int64) []byte, shown map[string]map[int64]int) (problems []string) {
	shown[pos] = map[int64]int{}
	for block := range int64(blocksPerVolume) {
		list := c.blocks[pos][block]
		want := -1 // the write that has to be there, or a later one
		for i, r := range list {
			if !r.met && c.due(r) {
				want = i
			}
		}
		least := len(list)
		data, whole := read(block), stampedBlock{block: block}
		for at := 0; at < blockSize; at += sectorSize {
			i, err := c.which(list, &whole, at, data)
			if err == nil && i < want {
				err = fmt.Errorf("shows write %s, but %s was acknowledged as durable", name(list, i), name(list, want))
			}
			if err != nil {
				problems = append(problems, fmt.Sprintf("position %s block %d byte %d: %v", pos, block, at, err))
				break
			}
			least = min(least, i)
		}
		shown[pos][block] = least
	}
	return problems
}

func name(list []*record, i int) string {
	if i < 0 {
		return "none"
	}
	r := list[i]
	return fmt.Sprintf("%d (stream %d, group %d, event %d)", r.id, r.stream, r.group, r.ack)
}

// which finds the write that a sector is of, -1 for zeroes.
func (c *cut) which(list []*record, whole *stampedBlock, at int, data []byte) (int, error) {
	sector := data[at : at+sectorSize]
	id := binary.LittleEndian.Uint64(sector)
	if id == 0 {
		if !bytes.Equal(sector, zeroes[:sectorSize]) {
			return 0, fmt.Errorf("neither zeroes nor a write: % x", sector[:16])
		}
		return -1, nil
	}
	if !bytes.Equal(sector, whole.of(id)[at:at+sectorSize]) {
		return 0, fmt.Errorf("no write: % x", sector[:16])
	}
	i := slices.IndexFunc(list, func(r *record) bool { return r.id == id })
	if i < 0 {
		return 0, fmt.Errorf("write %d was never made here", id)
	}
	// A stream makes its next group of writes when the one before is acknowledged.
	if r := list[i]; r.group > c.last[r.stream] {
		return 0, fmt.Errorf("write %s comes from the future: %d groups were acknowledged", name(list, i), c.last[r.stream])
	}
	return i, nil
}

// checkMet wants every write that met a swap behind one volume or the other.
func (c *cut) checkMet(shown map[string]map[int64]int) (problems []string) {
	for _, r := range c.records {
		if !r.met || !c.due(r) {
			continue
		}
		there := slices.ContainsFunc(r.at, func(pos string) bool {
			return shown[pos][r.block] >= slices.Index(c.blocks[pos][r.block], r)
		})
		if !there {
			problems = append(problems, fmt.Sprintf("write %d to block %d, which met a swap, was acknowledged (event %d) and is behind neither volume", r.id, r.block, r.ack))
		}
	}
	return problems
}
