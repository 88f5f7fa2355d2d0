//go:build vm

package storm

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// check looks at everything that must be true after a restart. The workers are
// paused.
func (s *storm) check(m moment) {
	s.t.Helper()
	for _, w := range s.workers {
		if w.bad {
			continue
		}
		cut := moment("")
		if w.cut != nil {
			cut = w.cut.moment
		}
		if err := w.job.settle(w, cut); err != nil {
			w.bad = true
			s.t.Errorf("%T after a kill (%s) that cut it off %q: %v", w.job, m, cut, err)
		}
		w.cut = nil
	}
	s.d.Check()
	s.checkDevices()
	s.checkProcess()
	s.load.check()
	s.kernel.ExpectQuiet(s.t)
	if s.t.Failed() {
		s.t.Logf("that was kill %d, %s; the successor said:\n%s", s.kills, m, rig.Tail(s.d.Log.String(), 60))
	}
}

// expectRest fails the test unless the volumes are left alone once what was asked
// of them is done. A filesystem may write something of its own in between; a load
// that goes on does in every try.
func (s *storm) expectRest() {
	s.t.Helper()
	var before, after map[string]api.IOStats
	for range 5 {
		before = s.atRest()
		time.Sleep(300 * time.Millisecond)
		if after = s.atRest(); maps.Equal(before, after) {
			return
		}
	}
	s.t.Errorf("nobody has anything to do, but the volumes' counters went from\n%+v to\n%+v", before, after)
}

// atRest waits until no volume has a request in flight, and returns the counters.
func (s *storm) atRest() map[string]api.IOStats {
	s.t.Helper()
	counts := map[string]api.IOStats{}
	rig.WaitUntil(s.t, "the last request to be answered", func() bool {
		volumes, err := s.d.Client.Volumes(s.t.Context(), "")
		if err != nil {
			s.t.Fatal(err)
		}
		for _, v := range volumes {
			inflight, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(v.Device), "inflight"))
			if err != nil {
				s.t.Fatal(err)
			}
			if strings.Trim(string(inflight), " 0\n") != "" {
				return false
			}
			counts[v.Name] = *v.IO
		}
		return true
	})
	return counts
}

// checkDevices compares the kernel's devices with the volumes.
func (s *storm) checkDevices() {
	s.t.Helper()
	volumes, err := s.d.Client.Volumes(s.t.Context(), "")
	if err != nil {
		s.t.Fatal(err)
	}
	var want []string
	for _, v := range volumes {
		if v.State != api.StateServing || v.IO == nil || v.IO.Errors != 0 {
			s.t.Errorf("volume %s is %s %s, counters %+v", v.Name, v.State, v.Error, v.IO)
		}
		if to, err := os.Readlink(v.Link); err != nil || to != v.Device {
			s.t.Errorf("link of volume %s leads to %q, want %s (%v)", v.Name, to, v.Device, err)
		}
		want = append(want, filepath.Base(v.Device))
	}
	var have []string
	paths, err := filepath.Glob("/sys/class/ublk-char/ublkc*")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, path := range paths {
		var n int
		if _, err := fmt.Sscanf(filepath.Base(path), "ublkc%d", &n); err != nil {
			s.t.Fatal(err)
		}
		have = append(have, fmt.Sprintf("ublkb%d", n))
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		s.t.Errorf("ublk devices %q, want %q", have, want)
	}
	if list := rig.MapperDevices(); len(list) != len(volumes) {
		s.t.Errorf("%d volumes, but these device-mapper devices: %q", len(volumes), list)
	}
}

// checkProcess compares the daemon with the one before all kills.
func (s *storm) checkProcess() {
	s.t.Helper()
	s.d.Client.Close()
	want := s.fixedFDs
	for _, w := range s.workers {
		if l, ok := w.job.(*life); ok && l.exists {
			want += s.volumeFDs
		}
	}
	if n := s.settledFDs(want); n > want {
		s.t.Errorf("the daemon has %d descriptors, want %d: %s", n, want, s.d.ListFDs())
	}
	m := s.d.Memory()
	s.memory = append(s.memory, m)
	if m > 2*s.memory[0]+16*rig.MiB {
		s.t.Errorf("the daemon has %.1f MiB of memory, the first after a kill had %.1f", mib(m), mib(s.memory[0]))
	}
}
