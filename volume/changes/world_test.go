package changes

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/dmswap/extmap"
)

const (
	testGranule = 4 * Block // an extent
	testPool    = "00112233-4455-6677-8899-aabbccddeeff"
	testPos     = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
)

var errDead = errors.New("the process is dead")

// world is what outlives a daemon: disks with content and change maps, metadata,
// and, unless the power goes, the run directory. Its content is a version per
// block; reference knowledge is what the maps are held against.
type world struct {
	t   *testing.T
	mu  sync.Mutex // goroutines of a daemon write to disks and metadata
	rng *rand.Rand

	content []int // as a reader sees it
	durable []int // as it would be after a power cut at the worst
	backups map[string][]int
	next    int         // version
	base    dmswap.Base // committed
	session dmswap.UUID // of the run directory, "" when there is none
	maps    []*disk     // two members
	place   [][2]int64  // member and extent of each granule
	dir     string

	crashed []byte // the fine map as it was when the last daemon died
	noFile  bool
	bad     bool // pages can't be written
	stuck   bool // nor can metadata

	// of the daemon that runs
	*life
	m       *Map
	members []*extmap.Map
}

// life is what one daemon does to the world. It ends at its deadline; what its
// goroutines try afterwards has no effect.
type life struct {
	w                 *world
	effects, deadline int
	dead              bool
}

// disk keeps a map area.
type disk struct{ bytes []byte }

// handle is a disk as one daemon has it open.
type handle struct {
	*disk
	l *life
}

func (d handle) ReadAt(p []byte, off int64) (int, error) { return copy(p, d.bytes[off:]), nil }

// WriteDurable can be cut off before, in the middle and after.
func (d handle) WriteDurable(p []byte, off int64) error {
	d.l.w.mu.Lock()
	defer d.l.w.mu.Unlock()
	if d.l.w.bad {
		return unix.EIO
	}
	was := d.l.dead
	if err := d.l.effectLocked(); err != nil {
		for at := 0; at < len(p) && !was; at += 512 {
			if d.l.w.rng.Intn(2) == 0 {
				copy(d.bytes[off+int64(at):], p[at:at+512])
			}
		}
		return err
	}
	copy(d.bytes[off:], p)
	return d.l.effectLocked()
}

// effectLocked dies at the deadline, and keeps the fine map as it is then.
func (l *life) effectLocked() error {
	if l.dead {
		return errDead
	}
	if l.effects++; l.effects == l.deadline {
		l.dieLocked()
		return errDead
	}
	return nil
}

func (l *life) dieLocked() {
	if l.dead {
		return
	}
	l.dead = true
	var err error
	l.w.crashed, err = os.ReadFile(l.w.file())
	l.w.noFile = err != nil
}

func (l *life) die() {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.dieLocked()
}

func (l *life) isDead() bool {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.dead
}

func (w *world) file() string { return filepath.Join(w.dir, testPos+".map") }

func newWorld(t *testing.T, seed int64, granules int) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewSource(seed)), backups: map[string][]int{}, dir: t.TempDir(),
		content: make([]int, granules*4), durable: make([]int, granules*4),
	}
	for range 2 {
		w.maps = append(w.maps, &disk{make([]byte, extmap.Size(64))})
	}
	for g := range granules {
		w.place = append(w.place, [2]int64{int64(g % 2), int64(3 + g/2)})
	}
	w.start()
	return w
}

// coverage is the coarse map over the world's disks.
type coverage struct {
	w     *world
	count int
}

func (c coverage) Granule() int64  { return testGranule }
func (c coverage) Granules() int64 { return int64(c.count) }

func (c coverage) at(g int64) (*extmap.Map, int64) {
	p := c.w.place[g]
	return c.w.members[p[0]], p[1]
}

func (c coverage) Set(g int64, done func(error)) bool {
	m, e := c.at(g)
	return m.Set(e, done)
}

func (c coverage) Clear(keep func(int64) bool) {
	for g := range int64(c.count) {
		m, e := c.at(g)
		m.Clear(e, 1, func(int64) bool { return keep(g) })
	}
}

func (c coverage) Each(f func(int64)) {
	for g := range int64(c.count) {
		m, e := c.at(g)
		m.Each(e, 1, func(int64) { f(g) })
	}
}

func (c coverage) TakeWhole(f func(int64)) {
	for g := range int64(c.count) {
		m, e := c.at(g)
		m.TakeWhole(e, 1, func(int64) { f(g) })
	}
}

// start begins a daemon, as package volume does.
func (w *world) start() {
	w.t.Helper()
	if w.life != nil {
		// Nobody has the file any more: what the dead one did to it since is void.
		os.Remove(w.file())
		if !w.noFile {
			if err := os.WriteFile(w.file(), w.crashed, 0o600); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.life = &life{w: w}
	pool, fits := id(testPool), w.session != ""
	w.members = nil
	for i, d := range w.maps {
		m := extmap.New(extmap.Options{Pool: pool, Member: extmap.ID{byte(i)}, Extents: 64, Logger: slog.New(slog.DiscardHandler)})
		m.Load(handle{d, w.life}, id(w.session))
		fits = fits && m.Session() == id(w.session)
		w.members = append(w.members, m)
	}
	if !fits {
		os.RemoveAll(w.dir)
		if err := os.MkdirAll(w.dir, 0o700); err != nil {
			w.t.Fatal(err)
		}
		w.session = dmswap.NewUUID()
		for _, m := range w.members {
			m.Distrust()
			if err := m.SetSession(id(w.session)); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	var err error
	if w.m, err = Open(w.options()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) options() Options {
	l := w.life
	return Options{
		Pool: testPool, Position: testPos, Size: w.size(), Durable: coverage{w, len(w.place)},
		File: w.file(), Session: w.session, Base: w.base, GiveUp: l.drop, Logger: slog.New(slog.DiscardHandler),
	}
}

func (w *world) size() int64 { return int64(len(w.content)) * Block }

// commit changes the metadata; like the pool's it flushes all disks first.
func (l *life) commit(b dmswap.Base) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	w := l.w
	if w.stuck {
		return unix.EIO
	}
	if err := l.effectLocked(); err != nil {
		return err
	}
	copy(w.durable, w.content)
	b.Generation = w.base.Generation + 1
	w.base = b
	return l.effectLocked()
}

func (l *life) drop(why string) error {
	l.w.mu.Lock()
	known := l.w.base.Backup != ""
	l.w.mu.Unlock()
	if !known {
		return nil
	}
	return l.commit(dmswap.Base{Why: why})
}

type waker chan bool

func (w waker) Wake() {
	select {
	case w <- true:
	default:
	}
}

// write does what a queue does with a write, and tells how it was answered.
func (w *world) write(first, count int) unix.Errno {
	off, n := uint64(first)*Block, uint64(count)*Block
	all := true
	for b := range uint64(count) {
		all = all && w.m.Blocks().Changed(off+b*Block, Block)
	}
	all = all || w.m.opt.Durable == nil // there is no guard
	woken := make(waker, 1)
	for !all {
		g := uint64(testGranule)
		yes, no := w.m.Touch(off/g, (off+n-1)/g, woken)
		if no != 0 {
			return no
		}
		if yes {
			break
		}
		<-woken
	}
	w.m.Blocks().Mark(off, n)
	if w.isDead() {
		return unix.EIO
	}
	for b := first; b < first+count; b++ {
		w.next++
		w.content[b] = w.next
	}
	return 0
}

// mustCover fails the test when a block differs from the base and is not named.
func (w *world) mustCover(when string) {
	w.t.Helper()
	base, words := w.m.Frozen()
	if base.Backup == "" {
		if words != nil || base.Why == "" {
			w.t.Fatalf("%s: no base, but a map, or no reason: %+v", when, base)
		}
		return
	}
	was, ok := w.backups[base.Backup]
	if !ok {
		w.t.Fatalf("%s: base %q was never made", when, base.Backup)
	}
	for b, v := range w.content {
		named := words[b/64]>>(b%64)&1 != 0
		if !named && (b >= len(was) || was[b] != v) {
			w.t.Fatalf("%s: block %d was written since backup %s, and is not named", when, b, base.Backup)
		}
	}
}

// cut begins a backup.
func (w *world) cut() (token, backup string) {
	token = w.m.Cut(time.Unix(int64(w.next), 0).UTC())
	w.mustCover("at a cut")
	backup = fmt.Sprintf("b-%d", len(w.backups))
	w.backups[backup] = slices.Clone(w.content)
	return token, backup
}

func (w *world) confirm(token, backup string) bool {
	ok, err := w.m.Confirm(token, backup, func(b dmswap.Base) (dmswap.Base, error) {
		b.Backup = backup
		err := w.commit(b)
		return w.base, err
	})
	if err != nil && !w.isDead() {
		w.t.Fatal(err)
	}
	for _, m := range w.members {
		m.Close() // one thing after the other, so that a seed says what happens
	}
	return ok
}

// kill ends the daemon; the machine goes on. The file may be lost or damaged.
func (w *world) kill() {
	w.die()
	switch w.rng.Intn(8) {
	case 0:
		w.noFile = true
	case 1:
		if len(w.crashed) > 0 {
			w.crashed[w.rng.Intn(headSize)] ^= 4
		}
	}
	w.start()
	w.mustHold("after a kill")
}

// powerCut ends the machine: of what was not flushed any part is lost.
func (w *world) powerCut() {
	w.die()
	for b := range w.content {
		if w.rng.Intn(2) == 0 {
			w.content[b] = w.durable[b]
		}
	}
	copy(w.durable, w.content)
	w.session = ""
	w.start()
	w.mustHold("after a power cut")
}

// mustHold looks at the map of a daemon that has just begun.
func (w *world) mustHold(when string) {
	w.t.Helper()
	if w.base.Backup != "" && w.m.Info().Base != w.base {
		w.t.Fatalf("%s: base %+v, the metadata has %+v", when, w.m.Info().Base, w.base)
	}
	w.m.Cut(time.Unix(0, 0))
	w.mustCover(when)
}

// grow makes the position larger.
func (w *world) grow() {
	n := len(w.place)
	if n == 60 {
		return
	}
	w.place = append(w.place, [2]int64{int64(n % 2), int64(3 + n/2)})
	w.content, w.durable = append(w.content, 0, 0, 0, 0), append(w.durable, 0, 0, 0, 0)
	for b := len(w.content) - 4; b < len(w.content); b++ {
		w.next++
		w.content[b] = w.next // whatever the extents held
		w.durable[b] = w.next
	}
	m, err := w.m.Grow(w.size(), coverage{w, len(w.place)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.m = m
}
