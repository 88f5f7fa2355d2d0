//go:build vm

package storm

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

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
