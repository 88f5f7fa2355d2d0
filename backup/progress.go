package backup

import (
	"sync/atomic"
	"time"
)

// tracker counts what workers do and tells a callback at a steady pace.
type tracker struct {
	phase string
	total atomic.Int64
	// work is how much of total is not zeroes, or -1 when nobody knows. Zeroes
	// cost next to nothing, so the time left is reckoned without them.
	work int64

	done, stored, zero, reused, changed atomic.Int64

	call func(Progress)
	stop chan struct{}
	gone chan struct{}
}

// progressEvery is the pace of the callback.
const progressEvery = 250 * time.Millisecond

// track starts a tracker. finish must be called.
func track(phase string, total, work int64, call func(Progress)) *tracker {
	t := &tracker{phase: phase, work: work, call: call}
	t.total.Store(total)
	if call != nil {
		t.stop, t.gone = make(chan struct{}), make(chan struct{})
		go t.run()
	}
	return t
}

// finish ends the callbacks; the last one has come when it returns.
func (t *tracker) finish() {
	if t.call != nil {
		close(t.stop)
		<-t.gone
	}
}

func (t *tracker) run() {
	defer close(t.gone)
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	var rate, workRate meter
	for last := false; !last; {
		var now time.Time
		select {
		case now = <-tick.C:
		case <-t.stop:
			now, last = time.Now(), true
		}
		p := Progress{Phase: t.phase, Total: t.total.Load(), Done: t.done.Load(),
			Stored: t.stored.Load(), Zero: t.zero.Load(), Reused: t.reused.Load(), Changed: t.changed.Load()}
		p.Rate = rate.add(now, p.Done)
		workRate.add(now, p.Done-p.Zero)
		if t.work < 0 {
			p.Remaining = rate.remaining(p.Total - p.Done)
		} else {
			p.Remaining = workRate.remaining(t.work - (p.Done - p.Zero))
		}
		t.call(p)
	}
}

// meter smooths a rate: what was measured counts for less the older it is.
type meter struct {
	start, last time.Time
	count       int64
	perSecond   float64
}

// meterMemory is how long a measurement keeps about a third of its weight.
const meterMemory = 5 * time.Second

// add takes a new count at a time and returns the rate.
func (m *meter) add(now time.Time, count int64) float64 {
	if m.start.IsZero() {
		// The first tick comes one interval after the start.
		m.start, m.last = now.Add(-progressEvery), now.Add(-progressEvery)
	}
	dt := now.Sub(m.last)
	if dt <= 0 {
		return m.perSecond
	}
	rate := float64(count-m.count) / dt.Seconds()
	// In the beginning the mean over all of the time so far is the best guess.
	weight := float64(dt) / float64(min(now.Sub(m.start), meterMemory))
	m.perSecond += (rate - m.perSecond) * min(weight, 1)
	m.last, m.count = now, count
	return m.perSecond
}

// remaining is how long n more take; 0 when nobody can tell.
func (m *meter) remaining(n int64) time.Duration {
	const day = 24 * 3600
	if n <= 0 || m.perSecond <= 0 {
		return 0
	}
	seconds := min(float64(n)/m.perSecond, 365*day)
	return time.Duration(seconds * float64(time.Second)).Round(time.Second / 10)
}
