package changes

import (
	"fmt"
	"time"

	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/failpoint"
)

// Cut begins the map anew at this instant, and returns a token by which the
// backup of the instant is told from any other when it is confirmed. Nothing may
// be in flight to the position. A cut that is never confirmed loses nothing: what
// it froze counts as changed until a later one is.
func (m *Map) Cut(now time.Time) (token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.freeze()
	failpoint.Hit("change map: cut")
	if m.opt.Durable != nil {
		m.opt.Durable.TakeWhole(m.freezeGranule)
		m.guarding = true
	}
	m.blocks.ResetGrants()
	m.cut = &cut{token: dmswap.NewUUID(), at: now}
	return m.cut.token
}

// Void has a cut of which there is no snapshot never be confirmed.
func (m *Map) Void(token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cut != nil && m.cut.token == token {
		m.cut = nil
	}
}

// Frozen returns what had changed at the last cut since the base: one bit per
// block, from the lowest bit of the first word on; and nil when there is no base.
// What lies behind the base's size has changed.
func (m *Map) Frozen() (dmswap.Base, []uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.base.Backup == "" {
		return m.base, nil
	}
	list := make([]uint64, len(m.words.frozen))
	for i := range list {
		list[i] = m.words.frozen[i].Load()
	}
	blocks := (m.opt.Size + Block - 1) / Block
	for b := m.base.Size / Block; b < blocks; b++ {
		list[b>>6] |= 1 << (b & 63)
	}
	return m.base, list
}

// Confirm makes a backup of a cut the base of the map: record has the metadata
// say so, durably, and returns what it says. It does nothing and returns false
// when the cut is not the last one, or void.
func (m *Map) Confirm(token, backup string, record func(dmswap.Base) (dmswap.Base, error)) (bool, error) {
	m.recording.Lock()
	defer m.recording.Unlock()
	m.mu.Lock()
	c := m.cut
	m.mu.Unlock()
	if c == nil || c.token != token {
		return false, nil
	}
	base, err := record(dmswap.Base{Backup: backup, Size: m.opt.Size, Since: c.at})
	if err != nil {
		return false, err
	}
	failpoint.Hit("change map: base recorded")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.base, m.since = base, c.at
	if m.cut != c {
		return true, nil // what is frozen by now is of another cut, and more than enough
	}
	m.cut = nil
	clearWords(m.words.frozen)
	failpoint.Hit("change map: frozen dropped")
	if m.opt.Durable != nil {
		m.opt.Durable.Clear(func(g int64) bool { return m.pending[uint64(g)] || m.blocks.Granted(uint64(g)) })
	}
	failpoint.Hit("change map: extents cleared")
	return true, nil
}

// Grow returns the map of a position that has grown, with all marks of m, whose
// place it takes. Nothing may be in flight. A cut is void: the backup of it is of
// the smaller position.
func (m *Map) Grow(size int64, durable Durable) (*Map, error) {
	m.recording.Lock()
	defer m.recording.Unlock()
	m.mu.Lock()
	base := m.base
	m.mu.Unlock()
	if durable == nil && m.opt.Durable != nil {
		const why = "it has grown onto a disk that has no room for a change map"
		if err := m.opt.GiveUp(why); err != nil {
			return nil, fmt.Errorf("change map of position %s: %s: %w", m.opt.Position, why, err)
		}
		base = dmswap.Base{Generation: base.Generation + 1, Why: why}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.freeze()
	m.cut = nil
	opt := m.opt
	opt.Size, opt.Durable, opt.Base = size, durable, base
	return open(opt, m.since, m.words.frozen)
}
