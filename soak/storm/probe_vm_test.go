//go:build vm

package storm

import (
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// prober writes one block after another, durably, and reads it back, and
// remembers the longest that one took: the pause that an application sees.
type prober struct {
	mu   sync.Mutex // held by who wants it to rest
	quit chan struct{}
	done chan struct{}

	result  sync.Mutex
	longest time.Duration
	failed  error
}

func startProber(t *testing.T, device string) *prober {
	t.Helper()
	p := &prober{quit: make(chan struct{}), done: make(chan struct{})}
	go p.loop(device)
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *prober) loop(device string) {
	defer close(p.done)
	err := withBlock(device, os.O_RDWR|unix.O_DSYNC, func(f *os.File, buf []byte) error {
		for n := byte(0); ; n++ {
			select {
			case <-p.quit:
				return nil
			case <-time.After(5 * time.Millisecond):
			}
			p.mu.Lock()
			took, err := probe(f, buf, n)
			p.mu.Unlock()
			if err != nil {
				return err
			}
			p.result.Lock()
			p.longest = max(p.longest, took)
			p.result.Unlock()
		}
	})
	p.result.Lock()
	p.failed = err
	p.result.Unlock()
}

// probe writes a block and reads it back; the longer of both counts.
func probe(f *os.File, buf []byte, n byte) (time.Duration, error) {
	buf[0] = n
	began := time.Now()
	if _, err := f.WriteAt(buf, 0); err != nil {
		return 0, err
	}
	wrote := time.Since(began)
	began = time.Now()
	if _, err := f.ReadAt(buf, 0); err != nil {
		return 0, err
	}
	return max(wrote, time.Since(began)), nil
}

// reset forgets the longest so far and returns it.
func (p *prober) reset() time.Duration {
	p.result.Lock()
	defer p.result.Unlock()
	longest := p.longest
	p.longest = 0
	return longest
}

func (p *prober) err() error {
	p.result.Lock()
	defer p.result.Unlock()
	return p.failed
}

// stop ends it and returns the longest.
func (p *prober) stop() time.Duration {
	select {
	case <-p.quit:
	default:
		close(p.quit)
	}
	<-p.done
	p.result.Lock()
	defer p.result.Unlock()
	return p.longest
}
