// Package pace slows reading down: to a rate, and as long as others need the disks
// that are read.
//
// # Giving way
//
// That somebody waits for I/O is what the kernel's pressure figure says (PSI). But
// whoever reads a disk as fast as it can waits himself nearly all the time, so the
// figure alone would have him give way to nobody. It counts only while others move
// data on the same disks: whatever the disks moved that this process did not.
//
// When both hold for more than a moment, the rate goes down step by step, to a quarter
// of the best that there was. It goes up again as soon as one of them does not, and when it is no
// longer what holds the reader up it is lifted. On a machine that does nothing
// else reading is never held up.
package pace

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// pressed is the share of time that somebody waits for I/O, from which on that
	// is a reason to give way.
	pressed = 0.2
	// otherRate is how much others must move: less than that is what every machine
	// does in passing, such as writing its log.
	otherRate = 1 << 20
	// slower and faster are the steps of the rate.
	slower, faster = 0.7, 1.25
	// moment is how many steps it takes until a reason is more than a moment's.
	moment = 2
	// leastShare and leastRate are where slowing down ends: a backup has to come
	// to its end.
	leastShare = 1.0 / 4
	leastRate  = 32 << 20
	// interval is how often the rate is looked at.
	interval = 500 * time.Millisecond
)

// Reading is what happened in an interval.
type Reading struct {
	Pressure float64 // share of the time in which somebody waited for I/O, 0 to 1
	Others   float64 // bytes per second that others moved on the disks
}

// Source says what happened since it was asked last. It is for one goroutine.
type Source interface {
	Read() (Reading, error)
}

// Pacer holds readers up. It is safe for concurrent use.
type Pacer struct {
	limiter *rate.Limiter
	most    rate.Limit // that was asked for; rate.Inf for none
	burst   int

	stop, gone chan struct{} // nil without a source

	mu    sync.Mutex
	moved int64 // bytes that were let through since the last step

	// Of the goroutine that makes the steps.
	best    float64
	crowded int // steps in a row
}

// New returns a Pacer of at most so many bytes per second, 0 for any, that gives way
// by what the source says, unless that is nil. Stop ends it. No more than burst bytes
// may be asked for at once.
func New(limit int64, burst int, s Source) *Pacer {
	p := &Pacer{most: rate.Inf, burst: burst}
	if limit > 0 {
		p.most = rate.Limit(limit)
	}
	p.limiter = rate.NewLimiter(p.most, burst)
	if s != nil {
		p.stop, p.gone = make(chan struct{}), make(chan struct{})
		go p.run(s)
	}
	return p
}

// Wait waits until n more bytes may be read.
func (p *Pacer) Wait(ctx context.Context, n int) error {
	p.mu.Lock()
	p.moved += int64(n)
	p.mu.Unlock()
	return p.limiter.WaitN(ctx, n)
}

// Stop ends the Pacer.
func (p *Pacer) Stop() {
	if p.stop != nil {
		close(p.stop)
		<-p.gone
	}
}

// run looks at the source until it fails: then nobody knows, and there is no reason
// to be slow.
func (p *Pacer) run(s Source) {
	defer close(p.gone)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-p.stop:
			return
		case now := <-tick.C:
			r, err := s.Read()
			if err != nil {
				p.limiter.SetLimit(p.most)
				return
			}
			p.step(now.Sub(last), r)
			last = now
		}
	}
}

// step sets the rate by what happened in a time.
func (p *Pacer) step(dt time.Duration, r Reading) {
	p.mu.Lock()
	moved := float64(p.moved) / max(dt.Seconds(), 1e-3)
	p.moved = 0
	p.mu.Unlock()
	p.best = max(p.best, moved)
	if r.Pressure < pressed || r.Others < otherRate {
		p.crowded = 0
		p.speedUp(moved)
	} else if p.crowded++; p.crowded >= moment {
		p.slowDown(moved)
	}
}

func (p *Pacer) slowDown(moved float64) {
	limit := p.limiter.Limit()
	if limit == rate.Inf {
		limit = rate.Limit(moved)
	}
	least := rate.Limit(max(p.best*leastShare, leastRate))
	p.limiter.SetLimit(min(max(limit*slower, least), p.most))
}

func (p *Pacer) speedUp(moved float64) {
	limit := p.limiter.Limit()
	if limit >= p.most {
		return
	}
	limit *= faster
	if float64(limit) > 2*max(moved, leastRate) {
		limit = rate.Inf // something else holds it up
	}
	p.limiter.SetLimit(min(limit, p.most))
}
