package hostagent

import (
	"context"
	"errors"
	"testing"

	"github.com/swapback/swapback/api"
)

// swap exchanges two volumes, as somebody does who knows nothing of locks.
func (w *world) swap(a, b string) {
	w.t.Helper()
	if _, err := w.svc.Swap(w.t.Context(), api.SwapRequest{Pairs: []api.SwapPair{{A: a, B: b}}}); err != nil {
		w.t.Error(err)
	}
}

// TestSpareChangesMeanwhile: between the choice of a spare and the first write
// somebody gives it other content, which is not written over.
func TestSpareChangesMeanwhile(t *testing.T) {
	const precious = 99
	for _, c := range []struct {
		name   string
		before func(*world) // the choice
		change func(*world) // after it
		code   string
		want   string
		shows  string // the volume that shows the precious content in the end
	}{
		{"swapped", nil, func(w *world) { w.swap("log-spare", "other") }, api.CodeGeneration, "shows other content than when it was chosen", "log-spare"},
		{"swapped while detached", func(w *world) {
			_, err := w.svc.Detach(w.t.Context(), "log-spare")
			must(w.t, err)
		}, func(w *world) { w.swap("log-spare", "other") }, api.CodeGeneration, "shows other content than when it was chosen", "log-spare"},
		{"another volume has its device", nil, func(w *world) {
			mine, other := w.show("log-spare").Device, w.show("other").Device
			w.svc.Change("log-spare", func(v *api.Volume) { v.Device = other })
			w.svc.Change("other", func(v *api.Volume) { v.Device = mine })
			w.write("other", precious)
		}, api.CodeGeneration, "attached anew, since it was chosen", "other"},
		{"put in quarantine", nil, func(w *world) {
			w.write("log-spare", precious)
			_, err := w.svc.Quarantine(w.t.Context(), "log-spare", api.QuarantineRequest{Quarantine: api.Quarantine{Reason: "bad day"}})
			must(w.t, err)
		}, api.CodeQuarantined, "bad day", "log-spare"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 100, "db", "log", "db-spare", "log-spare", "other")
			w.write("other", precious)
			w.backup("db", "log")
			if c.before != nil {
				c.before(w)
			}
			restores := 0
			w.svc.Before = func(m, _ string) error {
				// While the first volume is restored, not to say at the very last.
				if m == "SetDescendsFrom" {
					if restores++; restores == 1 {
						c.change(w)
					}
				}
				return nil
			}
			_, err := w.recover(nil, "db", "log")
			var re *RecoverError
			if !errors.As(err, &re) || re.Phase != PhaseRestore || re.Outcome != Untouched || api.CodeOf(err) != c.code {
				t.Fatalf("got %v", err)
			}
			says(t, err.Error(), c.want, "spare tank/log-spare was not written to")
			w.holds(c.shows, precious)
		})
	}
}

// TestCreatedSpareChangesMeanwhile: a recovery that fails deletes the spares that
// it created, but not what somebody has put there since.
func TestCreatedSpareChangesMeanwhile(t *testing.T) {
	w := newWorld(t, 100, "db", "other")
	w.write("other", 99)
	w.backup("db")
	w.svc.Before = func(m, _ string) error {
		if m == "SetDescendsFrom" {
			w.swap("db-spare", "other")
		}
		return nil
	}
	_, err := w.recover(nil, "db")
	if api.CodeOf(err) != api.CodeGeneration {
		t.Fatalf("got %v", err)
	}
	says(t, err.Error(), "spare tank/db-spare was created", "left as it is")
	w.holds("db-spare", 99)
}

// afterLook is a service on which something happens after the first look at a
// volume.
type afterLook struct {
	api.Service
	happens func()
}

func (s *afterLook) Volume(ctx context.Context, name string) (api.Volume, error) {
	v, err := s.Service.Volume(ctx, name)
	if s.happens != nil {
		f := s.happens
		s.happens = nil
		f()
	}
	return v, err
}

// TestRestoreLooksAgain: what the target shows may change until its lock is taken,
// and while a person is asked.
func TestRestoreLooksAgain(t *testing.T) {
	for _, c := range []struct {
		name    string
		happens func(*world)
		code    string
	}{
		{"swapped", func(w *world) { w.swap("bb", "ccc") }, api.CodeGeneration},
		{"in quarantine", func(w *world) {
			w.svc.Change("bb", func(v *api.Volume) { v.Position.Quarantine = &api.Quarantine{Reason: "bad day"} })
		}, api.CodeQuarantined},
		{"busy", func(w *world) { w.svc.Change("bb", func(v *api.Volume) { v.State = api.StateBusy }) }, api.CodeBusy},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 100, "a", "bb", "ccc")
			w.backup("a")
			svc := &afterLook{Service: w.svc, happens: func() { c.happens(w) }}
			_, err := Restore(t.Context(), RestoreOptions{Service: svc, Repo: w.repo, Locks: NewLocks(t.TempDir(), "me"), Backup: "latest", Volume: "bb", Overwrite: true})
			if api.CodeOf(err) != c.code {
				t.Errorf("got %v", err)
			}
			for name, seed := range map[string]uint64{"bb": 2, "ccc": 3} {
				if c.name == "swapped" {
					seed = 5 - seed
				}
				w.holds(name, seed)
			}
		})
	}
}

func TestRestoreOntoWhatWasSeen(t *testing.T) {
	w := newWorld(t, 100, "a", "bb", "ccc")
	w.backup("a")
	seen := w.show("bb").Position
	w.swap("bb", "ccc")
	o := RestoreOptions{Service: w.svc, Repo: w.repo, Backup: "latest", Volume: "bb", Overwrite: true, Seen: &seen}
	if _, err := Restore(t.Context(), o); api.CodeOf(err) != api.CodeGeneration {
		t.Errorf("got %v", err)
	}
	w.holds("bb", 3)
	seen = w.show("bb").Position
	if _, err := Restore(t.Context(), o); err != nil {
		t.Error(err)
	}
	w.holds("bb", 1)
}
