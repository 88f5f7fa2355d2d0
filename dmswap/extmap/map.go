package extmap

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Disk is what a map lies on. Offsets and lengths are multiples of 4096. What
// WriteDurable wrote is there after a power cut when it has returned nil.
type Disk interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteDurable(p []byte, off int64) error
}

// Options say where a map lies and whose it is.
type Options struct {
	Pool, Member ID
	Offset       int64 // of the area on the disk, bytes
	Extents      int64
	// Hung tells the error of a disk that owes an answer and may give it yet from
	// one that is final. Such a write is tried again until it is answered.
	Hung   func(error) bool
	Logger *slog.Logger
}

// retryPause is how long a disk that owes an answer is left alone.
const retryPause = 50 * time.Millisecond

// ErrAbsent is the answer for a member whose disk is not there.
var ErrAbsent = errors.New("the disk is not there")

// Map is the change map of one member. Its methods may be called from any
// goroutine.
type Map struct {
	opt Options

	mu      sync.Mutex
	idle    *sync.Cond // no writer is under way
	disk    Disk       // nil: absent
	session ID         // as the disk has it
	pages   []page
	whole   bool // some page may have whole extents
	writing bool // a goroutine writes pages
	closed  bool
}

// page is 32256 extents.
type page struct {
	number uint64
	// image is what the page is to have, durable what is on the disk for certain
	// and stays there; it is part of image. whole are extents of which the finer
	// half of the map does not know which blocks were written to, see TakeWhole.
	image, durable, whole []uint64
	dirty                 bool // image differs from the disk
	waits                 []wait
}

type wait struct {
	word int
	mask uint64
	done func(error)
}

// New makes the map of a member whose disk is not there yet; see Load.
func New(opt Options) *Map {
	m := &Map{opt: opt, pages: make([]page, Pages(opt.Extents))}
	m.idle = sync.NewCond(&m.mu)
	for k := range m.pages {
		p := &m.pages[k]
		p.image, p.durable, p.whole = make([]uint64, pageWords), make([]uint64, pageWords), make([]uint64, pageWords)
	}
	return m
}

// Load reads the map from a disk and keeps it there from now on. What was set
// before stays set. When the disk does not bear the session that is expected, it
// was in other hands: all that is set is whole then. What can't be read counts as
// set, and is not an error.
func (m *Map) Load(d Disk, expect ID) {
	head := aligned()
	session := ID{}
	if _, err := d.ReadAt(head, m.opt.Offset); err != nil {
		m.opt.Logger.Warn("head of a change map can't be read", "err", err)
	} else if session, err = decodeHead(head, m.opt.Pool, m.opt.Member); err != nil && !errors.Is(err, errEmpty) {
		m.opt.Logger.Warn("head of a change map does not count", "err", err)
	}
	numbers, found := make([]uint64, len(m.pages)), make([][]uint64, len(m.pages))
	for k := range found {
		b := aligned()
		_, err := d.ReadAt(b, m.pageAt(k))
		if err == nil {
			numbers[k], found[k], err = decodePage(b, m.opt.Pool, m.opt.Member, uint64(k))
		}
		if err != nil && !errors.Is(err, errEmpty) {
			m.opt.Logger.Warn("page of a change map does not count: all its extents are taken for changed", "page", k, "err", err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disk, m.session = d, session
	for k := range m.pages {
		p := &m.pages[k]
		p.number = max(p.number, numbers[k])
		if found[k] == nil {
			// Not durable: the page is written when something of it matters.
			m.whole = true
			for i := range p.image {
				p.image[i], p.whole[i], p.durable[i] = ^uint64(0), ^uint64(0), 0
			}
			continue
		}
		p.dirty = false
		for i, w := range found[k] {
			p.dirty = p.dirty || p.image[i]&^w != 0
			p.image[i] |= w
			p.durable[i] = w
			if session != expect {
				m.whole = true
				p.whole[i] |= p.image[i]
			}
		}
	}
}

// Session is whom the disk names as the one that knows which blocks of its
// extents were written to; zero for nobody. It is written before anything is
// tracked, so another one's finer map is not trusted when the disk was in other
// hands in between.
func (m *Map) Session() ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.session
}

// Absent tells whether the member's disk is not there.
func (m *Map) Absent() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disk == nil
}

// SetSession writes a session to the disk.
func (m *Map) SetSession(session ID) error {
	m.mu.Lock()
	d := m.disk
	m.mu.Unlock()
	if d == nil {
		return ErrAbsent
	}
	if err := d.WriteDurable(encodeHead(m.opt.Pool, m.opt.Member, session), m.opt.Offset); err != nil {
		return fmt.Errorf("head of the change map: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.session = session
	return nil
}

// Distrust says that whoever knew which blocks were written to is gone.
func (m *Map) Distrust() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.whole = true
	for k := range m.pages {
		p := &m.pages[k]
		copy(p.whole, p.image)
	}
}

func (m *Map) pageAt(k int) int64 { return m.opt.Offset + int64(1+k)*pageSize }

func (m *Map) place(extent int64) (p *page, word int, mask uint64) {
	k, i := extent/pageBits, extent%pageBits
	return &m.pages[k], int(i / 64), 1 << (i % 64)
}

// Set has an extent's bit set on the disk. It returns true when it is there
// already; else done is called, from another goroutine, when it is, or with an
// error when it can't be known to be. It does not wait.
func (m *Map) Set(extent int64, done func(error)) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, word, mask := m.place(extent)
	if p.durable[word]&mask != 0 && m.disk != nil {
		return true
	}
	p.image[word] |= mask
	p.dirty = true
	p.waits = append(p.waits, wait{word, mask, done})
	m.startWriting()
	return false
}

// Clear takes bits of count extents from first on back, but for those that keep
// names. The disk has them, or still more, until the page is written, which is
// soon; nothing waits for it. keep is called with the number of the extent from
// first on, under the map's lock.
func (m *Map) Clear(first, count int64, keep func(i int64) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range count {
		if keep(i) {
			continue
		}
		p, word, mask := m.place(first + i)
		if p.image[word]&mask == 0 {
			continue
		}
		p.image[word] &^= mask
		p.durable[word] &^= mask
		p.dirty = true
	}
	m.startWriting()
}

// Each calls f for those of count extents from first on that count as written to,
// with their number from first on. It is called under the map's lock.
func (m *Map) Each(first, count int64, f func(i int64)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range count {
		if p, word, mask := m.place(first + i); p.image[word]&mask != 0 {
			f(i)
		}
	}
}

// TakeWhole is Each for extents that were written to by somebody whose finer map
// is not known, and forgets that: the caller has to keep it.
func (m *Map) TakeWhole(first, count int64, f func(i int64)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.whole {
		return
	}
	for i := range count {
		if p, word, mask := m.place(first + i); p.whole[word]&mask != 0 {
			p.whole[word] &^= mask
			f(i)
		}
	}
}

// Close waits until what is to be written is written, but not for a disk that
// owes an answer. The disk is the caller's.
func (m *Map) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for m.writing {
		m.idle.Wait()
	}
}

// startWriting has a goroutine write what is dirty. The caller holds mu.
func (m *Map) startWriting() {
	if m.writing {
		return
	}
	m.writing = true
	go m.write()
}

// write writes dirty pages until there are none. What is set while a page is
// written goes out together with the next write of it.
func (m *Map) write() {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.idle.Broadcast()
	defer func() { m.writing = false }()
	for again := true; again; {
		again = false
		for k := range m.pages {
			if m.pages[k].dirty {
				m.writePage(k)
				again = true
			}
		}
	}
}

// writePage is called with mu held, and gives it free over the I/O.
func (m *Map) writePage(k int) {
	p := &m.pages[k]
	p.dirty = false
	p.number++
	sent := append([]uint64(nil), p.image...)
	waits := p.waits
	p.waits = nil
	b := encodePage(m.opt.Pool, m.opt.Member, uint64(k), p.number, sent)
	d := m.disk
	m.mu.Unlock()
	err := m.send(d, b, m.pageAt(k))
	m.mu.Lock()
	switch {
	case m.disk != d:
		// The member has come back on another disk: it is not there yet.
		p.dirty, p.waits = true, append(waits, p.waits...)
		return
	case err == nil:
		for i, w := range sent {
			// A bit that was taken back meanwhile is not promised any more.
			p.durable[i] |= w & p.image[i]
		}
	default:
		m.opt.Logger.Error("page of a change map not written", "page", k, "err", err)
		err = fmt.Errorf("page %d of the change map: %w", k, err)
	}
	m.mu.Unlock()
	for _, w := range waits {
		w.done(err)
	}
	m.mu.Lock()
}

// send writes a page, and waits for a disk that owes an answer.
func (m *Map) send(d Disk, b []byte, at int64) error {
	if d == nil {
		return ErrAbsent
	}
	for {
		err := d.WriteDurable(b, at)
		if err == nil || m.opt.Hung == nil || !m.opt.Hung(err) {
			return err
		}
		m.mu.Lock()
		closed := m.closed
		m.mu.Unlock()
		if closed {
			return err
		}
		time.Sleep(retryPause)
	}
}
