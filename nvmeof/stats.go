package nvmeof

import "sync/atomic"

// Stats are the counters of a namespace since it was added. They are read without
// stopping anything, so they may not agree with one another to the last command.
type Stats struct {
	Reads, Writes, Flushes, Discards, WriteZeroes, Compares uint64 // commands that succeeded

	ReadBytes, WriteBytes uint64
	Errors                uint64 // commands that failed, without those refused
	Held                  uint64 // commands that met a closed gate and waited
	Refused               uint64 // commands answered that they be tried again
	InFlight              uint64 // at the backend now
	Queues                int    // I/O queues that have used it and live
}

// counter has one writer at a time.
type counter struct{ v atomic.Uint64 }

func (c *counter) add(n uint64) { c.v.Store(c.v.Load() + n) }

type counters struct {
	reads, writes, flushes, discards, writeZeroes, compares counter
	readBytes, writeBytes                                   counter
	errors, held, refused                                   counter
}

func (c *counters) all() [11]*counter {
	return [...]*counter{
		&c.reads, &c.writes, &c.flushes, &c.discards, &c.writeZeroes, &c.compares,
		&c.readBytes, &c.writeBytes, &c.errors, &c.held, &c.refused,
	}
}

// add adds another's counts.
func (c *counters) add(o *counters) {
	to, from := c.all(), o.all()
	for i := range to {
		to[i].add(from[i].v.Load())
	}
}

func (c *counters) addTo(s *Stats) {
	for i, v := range [...]*uint64{
		&s.Reads, &s.Writes, &s.Flushes, &s.Discards, &s.WriteZeroes, &s.Compares,
		&s.ReadBytes, &s.WriteBytes, &s.Errors, &s.Held, &s.Refused,
	} {
		*v += c.all()[i].v.Load()
	}
}
