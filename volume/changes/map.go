package changes

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/dmswap/extmap"
	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/ublk"
)

// Block is the unit of the fine map in bytes.
const Block = 64 << 10

// Durable is the coarse map of a position, [dmswap.Coverage].
type Durable interface {
	Granule() int64
	Granules() int64
	Set(granule int64, done func(error)) bool
	Clear(keep func(granule int64) bool)
	Each(f func(granule int64))
	TakeWhole(f func(granule int64))
}

// Options are what a map is opened with.
type Options struct {
	Pool, Position dmswap.UUID
	Size           int64 // of the position in bytes
	// Durable is the coarse map; nil when the pool has none: then the map ends with
	// the process.
	Durable Durable
	// File is where the fine map is kept, "" for in the process; Session is what
	// the pool's maps are kept under.
	File    string
	Session dmswap.UUID
	// Base is what the metadata says.
	Base dmswap.Base
	// GiveUp has the metadata forget the base, durably: the coarse map can't be
	// kept. Writes that wait for it go on when it has returned nil.
	GiveUp func(why string) error
	Logger *slog.Logger
}

// Map is the change map of one position. Its methods may be called from any
// goroutine; who else cuts, confirms or grows it is for the caller to keep out.
type Map struct {
	opt    Options
	blocks *ublk.ChangeMap // has the active words

	recording sync.Mutex // one commit about the map at a time

	mu    sync.Mutex
	words words
	base  dmswap.Base
	since time.Time // what is marked was written since
	cut   *cut      // the last one, until it is confirmed or void
	// guarding: what is marked has to be durable before it is written. It is not as
	// long as there is neither a base nor a cut that could become one.
	guarding bool
	pending  map[uint64]bool       // granules on their way to the disks
	failed   map[uint64]unix.Errno // granules whose next write fails
	broken   []uint64              // granules that wait for GiveUp
	givingUp bool
	givenUp  int // how often it was; an answer from before is out of date
	waiting  map[ublk.Waker]struct{}
}

type cut struct {
	token string
	at    time.Time
}

var _ ublk.Guard = (*Map)(nil)

// Why there is no base when the metadata does not say.
const (
	whyNew      = "no backup of this content has been made that its change map counts from"
	whyVolatile = "its pool was made by an earlier version and has no room for a change map that outlives the daemon"
)

// Open makes the map of a position, from what an earlier daemon left of it. When
// nothing in it can be trusted the map has no base.
func Open(opt Options) (*Map, error) {
	since := opt.Base.Since
	if opt.Base.Backup == "" || opt.Durable == nil {
		if opt.Base.Why == "" {
			opt.Base.Why = whyNew
		}
		if opt.Durable == nil {
			opt.Base.Why = whyVolatile
		}
		opt.Base = dmswap.Base{Generation: opt.Base.Generation, Why: opt.Base.Why}
		since = time.Now().UTC()
	}
	return open(opt, since, nil)
}

// open makes a map with the marks of another one, or else, if it has a base, with
// those that were left of it.
func open(opt Options, since time.Time, marks []atomic.Uint64) (*Map, error) {
	m := &Map{
		opt: opt, base: opt.Base, since: since,
		pending: map[uint64]bool{}, failed: map[uint64]unix.Errno{}, waiting: map[ublk.Waker]struct{}{},
	}
	known := m.base.Backup != ""
	n := ublk.ChangeMapWords(uint64(opt.Size), Block)
	adopted := false
	if known && marks == nil && opt.File != "" {
		w, err := openFile(opt.File, m.head(), n)
		switch {
		case err == nil:
			m.words, adopted = w, true
		case !errors.Is(err, os.ErrNotExist):
			opt.Logger.Warn("fine change map of an earlier daemon does not count", "file", opt.File, "err", err)
		}
	}
	rename := func() error { return nil }
	if !adopted {
		var err error
		if m.words, rename, err = m.create(n); err != nil {
			return nil, err
		}
	}
	for i := range marks {
		m.words.frozen[i].Store(marks[i].Load())
	}
	if known && opt.Durable != nil {
		m.guarding = true
		m.freeze()
		if !adopted && marks == nil {
			opt.Durable.Each(m.freezeGranule)
		}
		opt.Durable.TakeWhole(m.freezeGranule)
	}
	// Only now that it has all that is known does it take the place of another one.
	if err := rename(); err != nil {
		return nil, fmt.Errorf("change map of position %s: %w", opt.Position, err)
	}
	failpoint.Hit("change map: file made")
	var err error
	if m.blocks, err = ublk.NewChangeMapIn(m.words.active, uint64(opt.Size), Block); err == nil && opt.Durable != nil {
		err = m.blocks.SetGuard(m, uint64(opt.Durable.Granule()), uint64(opt.Durable.Granules()))
	}
	if err != nil {
		return nil, fmt.Errorf("change map of position %s: %w", opt.Position, err)
	}
	// A queue may have the map for a moment longer than we do.
	runtime.AddCleanup(m.blocks, words.close, m.words)
	return m, nil
}

// create makes the words anew, in a file if there is room for one.
func (m *Map) create(n int) (words, func() error, error) {
	nothing := func() error { return nil }
	if m.opt.File == "" {
		return onHeap(n), nothing, nil
	}
	if m.opt.Durable != nil {
		w, rename, err := createFile(m.opt.File, m.head(), n)
		if err == nil {
			return w, rename, nil
		}
		m.opt.Logger.Warn("no file for a fine change map: after a kill of the daemon whole extents count as changed", "file", m.opt.File, "err", err)
	}
	// An old one would be taken for this.
	if err := os.Remove(m.opt.File); err != nil && !errors.Is(err, os.ErrNotExist) {
		return words{}, nil, fmt.Errorf("change map of position %s: %w", m.opt.Position, err)
	}
	return onHeap(n), nothing, nil
}

func (m *Map) head() head {
	return head{
		Pool: id(m.opt.Pool), Position: id(m.opt.Position), Session: id(m.opt.Session),
		Size: uint64(m.opt.Size), Block: Block, Generation: m.base.Generation,
	}
}

// freeze moves the active marks to the frozen ones. A kill in between leaves them
// in both.
func (m *Map) freeze() {
	for i := range m.words.active {
		if w := m.words.active[i].Load(); w != 0 {
			m.words.frozen[i].Or(w)
		}
	}
	failpoint.Hit("change map: frozen")
	clearWords(m.words.active)
}

func clearWords(list []atomic.Uint64) {
	for i := range list {
		if list[i].Load() != 0 {
			list[i].Store(0)
		}
	}
}

// freezeGranule marks all blocks of a granule as frozen.
func (m *Map) freezeGranule(granule int64) {
	per := m.opt.Durable.Granule() / Block
	blocks := (m.opt.Size + Block - 1) / Block
	for b := granule * per; b < min((granule+1)*per, blocks); b++ {
		m.words.frozen[b>>6].Or(1 << (b & 63))
	}
}

// Blocks is what queues mark in.
func (m *Map) Blocks() *ublk.ChangeMap { return m.blocks }

// Info is what is known of a map.
type Info struct {
	Base    dmswap.Base // Backup is "" when it counts from none, and Why says why
	Since   time.Time   // what is marked was written since
	Bytes   int64       // marked, in whole blocks
	Durable bool        // whether the map outlives the daemon and the machine
}

// Info describes the map.
func (m *Map) Info() Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for i := range m.words.active {
		n += bits.OnesCount64(m.words.active[i].Load() | m.words.frozen[i].Load())
	}
	return Info{Base: m.base, Since: m.since, Bytes: min(int64(n)*Block, m.opt.Size), Durable: m.opt.Durable != nil}
}

// Touch implements [ublk.Guard].
func (m *Map) Touch(first, last uint64, w ublk.Waker) (yes bool, no unix.Errno) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all, asked := true, m.givenUp
	for g := first; g <= last; g++ {
		switch errno, failed := m.failed[g]; {
		case m.blocks.Granted(g):
		case !m.guarding:
			m.blocks.Grant(g)
		case failed:
			delete(m.failed, g)
			return false, errno
		case m.pending[g]:
			all = false
		case m.opt.Durable.Set(int64(g), func(err error) { m.settled(g, asked, err) }):
			m.blocks.Grant(g)
		default:
			m.pending[g] = true
			all = false
		}
	}
	if !all && w != nil {
		m.waiting[w] = struct{}{}
	}
	return all, 0
}

// settled hears how it went to make a granule durable.
func (m *Map) settled(g uint64, asked int, err error) {
	m.mu.Lock()
	switch {
	case err == nil:
		delete(m.pending, g)
		m.blocks.Grant(g)
	case errors.Is(err, extmap.ErrAbsent):
		delete(m.pending, g)
		m.failed[g] = unix.EIO // as the write itself would
	case asked != m.givenUp:
		delete(m.pending, g) // who still wants it asks again
	default:
		m.broken = append(m.broken, g)
		if !m.givingUp {
			m.givingUp = true
			go m.giveUp(err)
		}
		m.mu.Unlock()
		return
	}
	m.wake()
}

// wake has those that wait ask again. It is called with mu held and gives it
// free: a queue that is woken may ask at once.
func (m *Map) wake() {
	list := m.waiting
	m.waiting = map[ublk.Waker]struct{}{}
	m.mu.Unlock()
	for w := range list {
		w.Wake()
	}
}

// giveUp lets writes go on without the coarse map, once it is durable that there
// is no base any more; or fails them.
func (m *Map) giveUp(cause error) {
	m.recording.Lock()
	defer m.recording.Unlock()
	why := fmt.Sprintf("its change map could not be written: %v", cause)
	err := m.opt.GiveUp(why)
	m.mu.Lock()
	m.givingUp = false
	if err == nil {
		m.opt.Logger.Error("change map given up: the next backup is full", "position", m.opt.Position, "err", cause)
		m.base = dmswap.Base{Generation: m.base.Generation + 1, Why: why}
		m.guarding, m.cut = false, nil
		m.givenUp++
	} else {
		m.opt.Logger.Error("change map can be neither written nor given up: writes fail", "position", m.opt.Position, "err", errors.Join(cause, err))
	}
	for _, g := range m.broken {
		delete(m.pending, g)
		if err == nil {
			m.blocks.Grant(g)
		} else {
			m.failed[g] = unix.EIO
		}
	}
	m.broken = nil
	m.wake()
}
