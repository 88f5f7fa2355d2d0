// Package heap measures what hostile input makes a decoder allocate.
package heap

import (
	"runtime"
	"runtime/metrics"
	"time"
)

// Peak runs f and returns the most bytes that lay on the heap meanwhile, those of
// the rest of the process included: looked at every millisecond, before f and
// after it. One Peak at a time says something.
func Peak(f func()) uint64 {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	done, top := make(chan struct{}), make(chan uint64)
	go func() {
		var most uint64
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			metrics.Read(sample)
			most = max(most, sample[0].Value.Uint64())
			select {
			case <-tick.C:
			case <-done:
				top <- most
				return
			}
		}
	}()
	f()
	close(done)
	return <-top
}
