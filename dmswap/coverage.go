package dmswap

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/swapback/swapback/dmswap/extmap"
)

// Base says which backup the change map of a position counts from: what the map
// does not name is as the backup has it. Where there is none it says why.
type Base struct {
	Backup string `json:"backup,omitempty"` // id
	// Size is how many bytes of the position the backup has. What lies behind has
	// changed.
	Size  int64     `json:"size,omitempty"`
	Since time.Time `json:"since,omitzero"` // the instant of the backup
	// Generation grows with every change of the record.
	Generation uint64 `json:"generation"`
	Why        string `json:"why,omitempty"`
}

// openMaps makes the maps of all members. A member whose area is too small for
// one has none: pools that an earlier version made on disks of many extents.
func (p *Pool) openMaps() {
	p.maps = make([]*extmap.Map, len(p.meta.Members))
	offset := int64(0)
	for _, m := range p.store.members {
		if m.disk != nil {
			offset = m.label.Slots[1] + m.label.SlotSize
		}
	}
	for i, m := range p.meta.Members {
		if offset+extmap.Size(m.Extents) > m.DataOffset {
			continue
		}
		p.maps[i] = extmap.New(extmap.Options{
			Pool: uuidBytes(p.uuid), Member: uuidBytes(m.UUID), Offset: offset, Extents: m.Extents,
			Hung:   func(err error) bool { return errors.Is(err, ErrBusy) },
			Logger: p.log.With("member", i),
		})
	}
}

// Track begins to keep the change maps of the pool. It is called once, before
// anything is written to a volume. session is what the caller tracked with when it
// had the pool last, or "". When a member has been in other hands since, or there
// is no such session, Track draws a new one: begin is then called before the
// members hear of it, to throw away whatever belongs to the old session, and
// what is known of changes is known by whole extents only, see
// [Coverage.TakeWhole].
//
// When it fails the bases of all positions have been given up, or the error is
// [ErrDamaged]: nothing may be written to a volume whose position has a base.
func (p *Pool) Track(session UUID, begin func() error) (UUID, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var expect extmap.ID
	if session != "" {
		expect = uuidBytes(session)
	}
	fits := session != ""
	p.mu.Unguarded(func() {
		for i, m := range p.maps {
			if m == nil || p.store.members[i].disk == nil {
				continue
			}
			m.Load(p.disks[i], expect)
			fits = fits && m.Session() == expect
		}
	})
	if fits {
		p.session = session
		return session, nil
	}
	session = NewUUID()
	var err error
	p.mu.Unguarded(func() {
		err = begin()
		for i, m := range p.maps {
			if err != nil || m == nil || m.Absent() {
				continue
			}
			m.Distrust()
			if e := m.SetSession(uuidBytes(session)); e != nil {
				err = fmt.Errorf("disk %s: %w", p.store.members[i].path, e)
			}
		}
	})
	if err == nil {
		p.session = session
		return session, nil
	}
	err = fmt.Errorf("pool %s: its change maps can't be kept: %w", p.name, err)
	if e := p.dropBases(err.Error(), func(*positionRecord) bool { return true }); e != nil {
		return "", &Error{Kind: ErrDamaged, Message: "no volume with a backup can be served, or its next backup would be wrong", Err: errors.Join(err, e), Remedy: "mend the disks, then restart the daemon"}
	}
	return "", err
}

// Session is what the change maps are kept under; "" before Track, or when it has
// failed.
func (p *Pool) Session() UUID {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.session
}

// mapReturning loads the map of a member that comes back. The caller holds mu.
func (p *Pool) mapReturning(i int, d memberDisk) (err error) {
	m := p.maps[i]
	if m == nil || p.session == "" {
		return nil
	}
	expect := extmap.ID(uuidBytes(p.session))
	p.mu.Unguarded(func() {
		m.Load(d, expect)
		if m.Session() != expect {
			// Nobody's finer map is to be trusted for it, ours neither.
			err = m.SetSession(uuidBytes(NewUUID()))
		}
	})
	return err
}

// DropBases has the metadata forget from which backups the maps of positions
// count. Their next backups are full, and say why.
func (p *Pool) DropBases(why string, positions ...UUID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dropBases(why, func(r *positionRecord) bool { return slices.Contains(positions, r.ID) })
}

func (p *Pool) dropBases(why string, match func(*positionRecord) bool) error {
	has := func(r *positionRecord) bool { return r.Base != nil && r.Base.Backup != "" && match(r) }
	if !slices.ContainsFunc(p.meta.Positions, func(r positionRecord) bool { return has(&r) }) {
		return nil
	}
	return p.commit(func(m *metadata) error {
		m.forgetBases(why, has)
		return nil
	})
}

// forgetBases replaces bases by the reason why there are none.
func (m *metadata) forgetBases(why string, match func(*positionRecord) bool) {
	for i := range m.Positions {
		if r := &m.Positions[i]; r.Base != nil && match(r) {
			r.Base = &Base{Generation: r.Base.Generation + 1, Why: why}
		}
	}
}

// Coverage is the durable change map of one position. Its unit is the granule:
// one extent, or, where the position is striped, one extent of each stripe; it is
// the same run of bytes of the position. Granules are counted from the beginning
// of the position.
type Coverage struct {
	granule int64
	count   int64
	runs    []coverageRun
}

// coverageRun is a segment.
type coverageRun struct {
	first, count int64 // granules
	on           []SegmentStripe
	maps         []*extmap.Map // of the stripes
}

// Coverage returns the durable change map of a position as it is now; it is to be
// asked for again when the position has grown. It is nil when a member that the
// position lies on has no room for one, or [Pool.Track] has failed.
func (p *Pool) Coverage(position UUID) (*Coverage, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	pos := p.meta.position(position)
	if pos == nil {
		return nil, errf(ErrNotFound, "", "pool %s has no position %s", p.name, position)
	}
	if p.session == "" {
		return nil, nil
	}
	c := &Coverage{granule: int64(pos.stripes()) * p.meta.Pool.ExtentSize}
	for _, s := range pos.Segments {
		r := coverageRun{first: c.count, count: s.Extents, on: s.Stripes}
		for _, st := range s.Stripes {
			m := p.maps[st.Member]
			if m == nil {
				return nil, nil
			}
			r.maps = append(r.maps, m)
		}
		c.runs = append(c.runs, r)
		c.count += s.Extents
	}
	return c, nil
}

// Granule returns the size of a granule in bytes.
func (c *Coverage) Granule() int64 { return c.granule }

// Granules returns how many there are.
func (c *Coverage) Granules() int64 { return c.count }

// Set has it durable that a granule may have changed. It returns true when it is
// so already; else done is called, from another goroutine, when it is, or with an
// error; [extmap.ErrAbsent] means that nothing can be written there anyway, since
// a disk is missing. It does not wait.
func (c *Coverage) Set(granule int64, done func(error)) bool {
	i, _ := slices.BinarySearchFunc(c.runs, granule, func(r coverageRun, g int64) int {
		if r.first+r.count <= g {
			return -1
		}
		return 0
	})
	r := c.runs[i]
	if len(r.maps) == 1 {
		return r.maps[0].Set(r.on[0].Start+granule-r.first, done)
	}
	// All of a row, though a write may touch one of its extents only: a bit too
	// many costs less than a second kind of unit.
	row := &rowWait{done: done}
	row.left.Store(int32(len(r.maps)) + 1)
	there := int32(0)
	for k, m := range r.maps {
		if m.Set(r.on[k].Start+granule-r.first, row.one) {
			there++
		}
	}
	if int(there) == len(r.maps) {
		return true
	}
	go row.answered(there+1, nil)
	return false
}

// rowWait calls done when all extents of a row have been answered for.
type rowWait struct {
	left   atomic.Int32
	failed atomic.Pointer[error]
	done   func(error)
}

func (w *rowWait) one(err error) { w.answered(1, err) }

func (w *rowWait) answered(n int32, err error) {
	if err != nil {
		w.failed.Store(&err)
	}
	if w.left.Add(-n) > 0 {
		return
	}
	if e := w.failed.Load(); e != nil {
		w.done(*e)
		return
	}
	w.done(nil)
}

// Clear takes back all granules but those that keep names. It is not durable yet
// when it returns, but soon.
func (c *Coverage) Clear(keep func(granule int64) bool) {
	for _, r := range c.runs {
		for k, m := range r.maps {
			m.Clear(r.on[k].Start, r.count, func(i int64) bool { return keep(r.first + i) })
		}
	}
}

// Each calls f for every granule that may have changed, for some more than once.
func (c *Coverage) Each(f func(granule int64)) {
	for _, r := range c.runs {
		for k, m := range r.maps {
			m.Each(r.on[k].Start, r.count, func(i int64) { f(r.first + i) })
		}
	}
}

// TakeWhole is Each for granules that somebody has written to of whom it is not
// known where. It tells of each once only: the caller has to take it for changed
// all over until a backup has been made.
func (c *Coverage) TakeWhole(f func(granule int64)) {
	for _, r := range c.runs {
		for k, m := range r.maps {
			m.TakeWhole(r.on[k].Start, r.count, func(i int64) { f(r.first + i) })
		}
	}
}
