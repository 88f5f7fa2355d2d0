package volume

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

type endedServer struct {
	done chan struct{}
	err  error
}

func (s *endedServer) Done() <-chan struct{} { return s.done }
func (s *endedServer) Err() error            { return s.err }

// When a volume is served again, by the time from the start of its server. It was
// served anew a while before that, or never.
func TestFailedServersAreFollowed(t *testing.T) {
	const s, m = time.Second, time.Minute
	broken := errors.New("its ring broke")
	for name, c := range map[string]struct {
		last   time.Duration // before the start; 0: never
		ends   time.Duration
		err    error
		answer []time.Duration // of each try; then the end
		want   []time.Duration
	}{
		"stopped":             {0, 3 * m, nil, nil, nil},
		"after long":          {5 * s, 3 * m, broken, []time.Duration{0}, []time.Duration{3 * m}},
		"first time":          {0, 20 * s, broken, []time.Duration{0}, []time.Duration{20 * s}},
		"first time, at once": {0, 0, broken, []time.Duration{0}, []time.Duration{0}},
		"at once":             {5 * s, 0, broken, []time.Duration{0}, []time.Duration{55 * s}},
		"soon":                {5 * s, 20 * s, broken, []time.Duration{0}, []time.Duration{55 * s}},
		"while it is claimed": {0, 2 * m, broken, []time.Duration{s, s, 0}, []time.Duration{2 * m, 2*m + s, 2*m + 2*s}},
		"and can't be":        {0, 2 * m, broken, []time.Duration{m, m, 0}, []time.Duration{2 * m, 3 * m, 4 * m}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start, server := time.Now(), &endedServer{make(chan struct{}), c.err}
				time.AfterFunc(c.ends, func() { close(server.done) })
				var tries []time.Duration
				last := func() time.Time {
					if c.last == 0 {
						return time.Time{}
					}
					return start.Add(-c.last)
				}
				afterFailure(t.Context(), server, last, func() time.Duration {
					tries = append(tries, time.Since(start))
					return c.answer[len(tries)-1]
				})
				if !slices.Equal(tries, c.want) {
					t.Errorf("tried after %v, want %v", tries, c.want)
				}
			})
		})
	}
}

// A daemon that ends neither waits for servers nor begins new ones.
func TestNoServerIsFollowedIntoTheEnd(t *testing.T) {
	for name, ends := range map[string]bool{"serving": false, "failed": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &endedServer{make(chan struct{}), errors.New("its ring broke")}
				if ends {
					close(server.done)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				afterFailure(ctx, server, func() time.Time { return time.Now() }, func() time.Duration {
					t.Error("it was served again")
					return 0
				})
			})
		})
	}
}
