package hostagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/api"
)

func (w *world) recover(change func(*RecoverOptions), names ...string) (RecoverResult, error) {
	w.t.Helper()
	o := RecoverOptions{
		Service: w.svc, Repo: w.repo, Volumes: names, AnswerWait: 200 * time.Millisecond,
		Reason: "it broke", Job: "j", Step: "s", ExitCode: 3,
	}
	if change != nil {
		change(&o)
	}
	return Recover(w.t.Context(), o)
}

func TestRecover(t *testing.T) {
	w := newWorld(t, 100, "db")
	b := w.backup("db")
	w.write("db", 66)
	device, position := w.show("db").Device, w.show("db").Position.ID
	var phases []RecoverPhase
	res, err := w.recover(func(o *RecoverOptions) {
		o.Phase = func(p RecoverPhase, _ RecoverResult) { phases = append(phases, p) }
	}, "db")
	if err != nil {
		t.Fatal(err)
	}
	w.holds("db", 2)
	w.holds("db-spare", 66)
	if v := w.show("db"); v.Device != device || v.Position.ID == position || v.Position.DescendsFrom != b.ID {
		t.Errorf("%+v", v)
	}
	q := w.show("db-spare").Position.Quarantine
	if q == nil || q.Reason != "it broke" || q.Volume != "tank/db" || q.Job != "j" || q.Step != "s" || q.ExitCode != 3 || q.Backup != b.ID || q.Time.IsZero() {
		t.Errorf("label %+v", q)
	}
	if !slices.Equal(phases, []RecoverPhase{PhaseChoose, PhaseRestore, PhaseSwap, PhaseQuarantine}) || len(res.Phases) != 4 {
		t.Errorf("phases %v, %+v", phases, res.Phases)
	}
	if v := res.Volumes[0]; v.Volume != "tank/db" || v.Spare != "tank/db-spare" || !v.SpareCreated || !v.Quarantined || v.FailedPosition != position || v.Restore.Backup != b.ID {
		t.Errorf("%+v", v)
	}
	if req := w.svc.Swaps[0]; len(req.Pairs) != 1 || req.Pairs[0].ExpectA != 1 || req.Pairs[0].ExpectB != 1 {
		t.Errorf("the swap asked for was %+v", req)
	}

	// Once more: the spare holds evidence now, so another is made.
	w.write("db", 67)
	if res, err = w.recover(nil, "db"); err != nil || res.Volumes[0].Spare != "tank/db-spare-2" {
		t.Fatalf("%+v %v", res, err)
	}
	w.holds("db", 2)
	w.holds("db-spare", 66)
	w.holds("db-spare-2", 67)
}

// TestRecoverTwoVolumes: both come from one backup, though one of them has a
// newer one of its own, and both are in one swap.
func TestRecoverTwoVolumes(t *testing.T) {
	w := newWorld(t, 100, "db", "log")
	both := w.backup("db", "log")
	w.write("db", 50)
	w.backup("db")
	w.write("db", 51)
	w.write("log", 52)
	res, err := w.recover(nil, "log", "db")
	if err != nil {
		t.Fatal(err)
	}
	if res.Backup != both.ID || len(w.svc.Swaps) != 1 || len(w.svc.Swaps[0].Pairs) != 2 {
		t.Errorf("%+v, swaps %+v", res, w.svc.Swaps)
	}
	w.holds("db", 2)
	w.holds("log", 3)
	w.holds("db-spare", 51)
	w.holds("log-spare", 52)
}

func TestSpareIsChosen(t *testing.T) {
	for _, c := range []struct {
		name    string
		spares  []string
		prepare func(*world)
		onto    map[string]string
		want    string
	}{
		{"one by its name", []string{"other", "db-spare"}, nil, nil, "db-spare"},
		{"one with a longer name", []string{"db-spare-monday"}, nil, nil, "db-spare-monday"},
		{"never another's", []string{"log-spare", "spare", "db2-spare"}, nil, nil, "db-spare"},
		{"not one in quarantine", []string{"db-spare"}, func(w *world) {
			w.svc.Change("db-spare", func(v *api.Volume) { v.Position.Quarantine = &api.Quarantine{Reason: "x"} })
		}, nil, "db-spare-2"},
		{"not one in use", []string{"db-spare"}, func(w *world) {
			w.svc.Held["db-spare"] = []api.Holder{{Kind: "process", Detail: "x"}}
		}, nil, "db-spare-2"},
		{"not one that is read-only", []string{"db-spare"}, func(w *world) {
			w.svc.Change("db-spare", func(v *api.Volume) { v.ReadOnly = true })
		}, nil, "db-spare-2"},
		{"not one of another size", []string{"db-spare"}, func(w *world) {
			w.svc.Change("db-spare", func(v *api.Volume) { v.Size *= 2 })
		}, nil, "db-spare-2"},
		{"not one of another pool", []string{"db-spare"}, func(w *world) {
			w.svc.Change("db-spare", func(v *api.Volume) { v.Pool = "lake" })
		}, nil, "db-spare-2"},
		{"not one that failed", []string{"db-spare"}, func(w *world) {
			w.svc.Change("db-spare", func(v *api.Volume) { v.State = api.StateFailed })
		}, nil, "db-spare-2"},
		{"a detached one", []string{"db-spare"}, func(w *world) {
			_, err := w.svc.Detach(w.t.Context(), "db-spare")
			must(w.t, err)
		}, nil, "db-spare"},
		{"the named one", []string{"db-spare", "other"}, nil, map[string]string{"tank/db": "other"}, "other"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 100, append([]string{"db"}, c.spares...)...)
			w.backup("db")
			w.write("db", 66)
			if c.prepare != nil {
				c.prepare(w)
			}
			before := w.names()
			res, err := w.recover(func(o *RecoverOptions) { o.Onto = c.onto }, "db")
			if err != nil {
				t.Fatal(err)
			}
			if got := res.Volumes[0].Spare; got != "tank/"+c.want {
				t.Errorf("restored onto %s, want %s", got, c.want)
			}
			if created := !slices.Contains(before, c.want); res.Volumes[0].SpareCreated != created {
				t.Errorf("created: %v", res.Volumes[0].SpareCreated)
			}
			w.holds("db", 2)
			w.holds(c.want, 66)
		})
	}
}

// TestRecoverRefusals: whatever can be seen to fail is refused before anything
// is written, and nothing is left behind.
func TestRecoverRefusals(t *testing.T) {
	held := []api.Holder{{Kind: "mount", Device: "/dev/ublkb0", Detail: "mounted on /srv"}}
	for _, c := range []struct {
		name    string
		extents int64
		prepare func(*world)
		change  func(*RecoverOptions)
		want    []string
	}{
		{"no volume", 100, nil, func(o *RecoverOptions) { o.Volumes = nil }, []string{"no volume is named"}},
		{"unknown volume", 100, nil, func(o *RecoverOptions) { o.Volumes = []string{"x"} }, []string{`no volume "x"`}},
		{"volume in use", 100, func(w *world) { w.svc.Held["db"] = held }, nil, []string{"in use", "mounted on /srv"}},
		{"volume in quarantine", 100, func(w *world) {
			w.svc.Change("db", func(v *api.Volume) { v.Position.Quarantine = &api.Quarantine{Reason: "x"} })
		}, nil, []string{"in quarantine", "release"}},
		{"no backup", 100, nil, func(o *RecoverOptions) { o.Volumes = []string{"other"} }, []string{"no such backup"}},
		{"no backup of both", 100, func(w *world) { w.backup("other") }, func(o *RecoverOptions) { o.Volumes = []string{"db", "other"} }, []string{"no one backup holds all"}},
		{"unknown backup", 100, nil, func(o *RecoverOptions) { o.From = "19990101" }, []string{"no such backup"}},
		{"backup of something larger", 100, func(w *world) {
			w.svc.Change("db", func(v *api.Volume) { v.Size /= 2 })
		}, nil, []string{"bytes", "choose a backup"}},
		{"no room", 11, nil, nil, []string{"no room to create one", "3 MiB free, 4 MiB are needed", "delete volumes"}},
		{"different pools", 100, func(w *world) {
			w.svc.Change("other", func(v *api.Volume) { v.Pool = "lake" })
		}, func(o *RecoverOptions) { o.Volumes = []string{"db", "lake/other"} }, []string{"different pools"}},
		{"spare unknown", 100, nil, func(o *RecoverOptions) { o.Onto = map[string]string{"db": "x"} }, []string{`no volume "x"`}},
		{"spare in use", 100, func(w *world) { w.svc.Held["other"] = held }, func(o *RecoverOptions) { o.Onto = map[string]string{"db": "other"} }, []string{"spare of volume tank/db", "mounted on /srv"}},
		{"spare in quarantine", 100, func(w *world) {
			w.svc.Change("other", func(v *api.Volume) { v.Position.Quarantine = &api.Quarantine{Reason: "keep me"} })
		}, func(o *RecoverOptions) { o.Onto = map[string]string{"db": "other"} }, []string{"keep me"}},
		{"spare of another size", 100, func(w *world) {
			w.svc.Change("other", func(v *api.Volume) { v.Size *= 2 })
		}, func(o *RecoverOptions) { o.Onto = map[string]string{"db": "other"} }, []string{"it has 8388608 bytes, not 4194304"}},
		{"spare is the volume", 100, nil, func(o *RecoverOptions) { o.Onto = map[string]string{"db": "tank/db"} }, []string{"can't be a spare as well"}},
		{"spare for somebody else", 100, nil, func(o *RecoverOptions) { o.Onto = map[string]string{"log": "other"} }, []string{"not to be recovered"}},
		{"daemon away", 100, func(w *world) {
			w.svc.Before = func(string, string) error { return &api.Error{Code: api.CodeUnavailable, Message: "no swapbackd"} }
		}, nil, []string{"no swapbackd"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.extents, "db", "other")
			w.backup("db")
			w.write("db", 66)
			if c.prepare != nil {
				c.prepare(w)
			}
			_, err := w.recover(c.change, "db")
			var re *RecoverError
			if !errors.As(err, &re) || re.Phase != PhaseChoose || re.Outcome != Untouched {
				t.Fatalf("got %v", err)
			}
			says(t, err.Error(), append(c.want, "nothing was swapped")...)
			w.svc.Before = nil
			w.holds("db", 66)
			w.holds("other", 5)
			if names := w.names(); !slices.Equal(names, []string{"db", "other"}) {
				t.Errorf("volumes are %q", names)
			}
			if len(w.svc.Swaps) > 0 {
				t.Errorf("a swap was asked for: %+v", w.svc.Swaps)
			}
		})
	}
}

// TestRecoverFailsHalfWay: what fails after the choice leaves the volumes as
// they were, and says what has become of the spares.
func TestRecoverFailsHalfWay(t *testing.T) {
	boom := &api.Error{Code: api.CodeInternal, Message: "boom"}
	failOn := func(method string, nth int) func(*world) {
		return func(w *world) {
			seen := 0
			w.svc.Before = func(m, _ string) error {
				if m == method {
					seen++
				}
				return when(m == method && seen == nth, boom)
			}
		}
	}
	for _, c := range []struct {
		name    string
		prepare func(*world)
		onto    map[string]string
		phase   RecoverPhase
		want    []string
		left    []string // spares
	}{
		{"first spare not created", failOn("CreateVolume", 1), nil, PhaseRestore, []string{"create a spare of volume tank/db"}, nil},
		{"second spare not created", failOn("CreateVolume", 2), nil, PhaseRestore, []string{"create a spare of volume tank/log", "tank/db-spare was created and deleted again"}, nil},
		{"damaged backup", func(w *world) { w.damage() }, nil, PhaseRestore, []string{"damaged", "created and deleted again"}, nil},
		{"damaged backup, named spares", func(w *world) { w.damage() }, map[string]string{"db": "one", "log": "two"}, PhaseRestore,
			[]string{"tank/one may hold an incomplete image", "tank/two was not written to"}, nil},
		{"backup not recorded", failOn("SetDescendsFrom", 1), nil, PhaseRestore, []string{"not recorded", "created and deleted again"}, nil},
		{"swap refused", failOn("Swap", 1), nil, PhaseSwap, []string{"swap failed: boom", "created and deleted again"}, nil},
		{"swap refused, named spares", failOn("Swap", 1), map[string]string{"db": "one", "log": "two"}, PhaseSwap, []string{"tank/one holds backup", "tank/two holds backup"}, nil},
		{"mounted meanwhile", func(w *world) {
			w.svc.Before = func(m, _ string) error {
				if m == "Swap" {
					w.svc.Held["db"] = []api.Holder{{Device: "/dev/ublkb0", Detail: "mounted on /srv"}}
				}
				return nil
			}
		}, nil, PhaseSwap, []string{"mounted on /srv"}, nil},
		{"swapped by somebody else meanwhile", func(w *world) {
			w.svc.Before = func(m, _ string) error {
				if m == "Swap" {
					w.svc.Change("log", func(v *api.Volume) { v.Position.Generation = 9 })
				}
				return nil
			}
		}, nil, PhaseSwap, []string{"generation 9"}, nil},
		{"spare can't be deleted", func(w *world) {
			w.svc.Before = func(m, _ string) error {
				return when(m == "Swap" || m == "DeleteVolume", boom)
			}
		}, nil, PhaseSwap, []string{"could not be deleted again (swapback volume delete tank/db-spare)"}, []string{"db-spare", "log-spare"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 100, "db", "log", "one", "two")
			w.backup("db", "log")
			w.write("db", 66)
			w.write("log", 67)
			c.prepare(w)
			_, err := w.recover(func(o *RecoverOptions) { o.Onto = c.onto }, "db", "log")
			var re *RecoverError
			if !errors.As(err, &re) || re.Phase != c.phase || re.Outcome != Untouched {
				t.Fatalf("got %#v", err)
			}
			says(t, err.Error(), append(c.want, "nothing was swapped: tank/db, tank/log untouched")...)
			w.svc.Before = nil
			w.holds("db", 66)
			w.holds("log", 67)
			want := append([]string{"db", "log", "one", "two"}, c.left...)
			slices.Sort(want)
			if names := w.names(); !slices.Equal(names, want) {
				t.Errorf("volumes are %q, want %q", names, want)
			}
		})
	}
}

func TestRecoverCancelled(t *testing.T) {
	w := newWorld(t, 100, "db")
	w.backup("db")
	w.write("db", 66)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := Recover(ctx, RecoverOptions{Service: w.svc, Repo: w.repo, Volumes: []string{"db"}, Phase: func(p RecoverPhase, _ RecoverResult) {
		if p == PhaseRestore {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	w.holds("db", 66)
	if names := w.names(); !slices.Equal(names, []string{"db"}) {
		t.Errorf("volumes are %q", names)
	}
}

// TestSwapAnswerLost: whether the swap happened is found out by what the
// volumes show, not by the answer.
func TestSwapAnswerLost(t *testing.T) {
	lost := errors.New("connection reset by peer")
	silent := &api.Error{Code: api.CodeUnavailable, Message: "no swapbackd"}
	for _, c := range []struct {
		name    string
		happens bool
		looks   int // how often the daemon is silent afterwards
		ok      bool
		outcome Outcome
		shows   uint64
	}{
		{"it happened", true, 0, true, "", 2},
		{"it happened, and the daemon is back after a while", true, 3, true, "", 2},
		{"it did not happen", false, 2, false, Untouched, 66},
		{"nobody can say", true, 1 << 20, false, Unknown, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 100, "db")
			b := w.backup("db")
			w.write("db", 66)
			looks := -1
			hook := func(m, _ string) error {
				if m == "Swap" {
					looks = c.looks
					return lost
				}
				if m == "Volume" && looks > 0 {
					looks--
					return silent
				}
				return nil
			}
			if c.happens {
				w.svc.After = func(m, v string) error { return when(m == "Swap", hook(m, v)) }
				w.svc.Before = func(m, v string) error { return when(m != "Swap", hook(m, v)) }
			} else {
				w.svc.Before = hook
			}
			res, err := w.recover(nil, "db")
			w.svc.Before, w.svc.After = nil, nil
			w.holds("db", c.shows)
			if c.ok {
				if err != nil || len(res.Warnings) != 1 || res.Swap.Coherent || !res.Volumes[0].Quarantined {
					t.Errorf("%+v %v", res, err)
				}
				says(t, fmt.Sprint(res.Warnings), "answer to the request was lost", "connection reset")
				return
			}
			var re *RecoverError
			if !errors.As(err, &re) || re.Outcome != c.outcome || !errors.Is(err, lost) {
				t.Fatalf("got %v", err)
			}
			if c.outcome == Unknown {
				// Nothing may be cleaned up: either volume could be the good one.
				says(t, err.Error(), "means the failed data", "means backup "+b.ID, res.Volumes[0].FailedPosition)
				w.holds("db-spare", 66)
			}
		})
	}
}

func TestBusySwapIsTriedAgain(t *testing.T) {
	w := newWorld(t, 100, "db")
	w.backup("db")
	tries := 0
	w.svc.Before = func(m, _ string) error {
		if m == "Swap" {
			tries++
			return when(tries < 4, &api.Error{Code: api.CodeBusy, Message: "busy"})
		}
		return nil
	}
	if _, err := w.recover(nil, "db"); err != nil || tries != 4 {
		t.Errorf("%d tries, %v", tries, err)
	}
}

// TestDeathAfterTheSwap: whoever recovers dies before he has said what the failed
// data is, and recovers again. The first failed data stays what it is.
func TestDeathAfterTheSwap(t *testing.T) {
	w := newWorld(t, 100, "db")
	w.backup("db")
	w.write("db", 66)
	dead := false
	w.svc.Before = func(string, string) error {
		return when(dead, &api.Error{Code: api.CodeInternal, Message: "boom"})
	}
	w.svc.After = func(m, _ string) error {
		dead = m == "Swap"
		return nil
	}
	if res, err := w.recover(nil, "db"); err != nil || res.Volumes[0].Quarantined || len(res.Warnings) != 1 {
		t.Fatalf("%+v %v", res, err)
	}
	w.svc.Before, w.svc.After = nil, nil
	w.write("db", 67)
	res, err := w.recover(nil, "db")
	if err != nil || res.Volumes[0].Spare != "tank/db-spare-2" {
		t.Errorf("%+v %v", res, err)
	}
	w.holds("db", 2)
	w.holds("db-spare", 66)
	w.holds("db-spare-2", 67)
}

// TestOneRecoveryAtATime: the second is refused with who does the first, and
// what a process locked that is no more is free.
func TestOneRecoveryAtATime(t *testing.T) {
	w := newWorld(t, 100, "db", "log")
	w.backup("db")
	dir := t.TempDir()
	locked := func(o *RecoverOptions) { o.Locks = NewLocks(dir, "the second") }
	first := NewLocks(dir, "the first")
	for _, name := range []string{"db", "db-spare"} {
		if name == "db-spare" {
			w.volume("db-spare")
		}
		v, err := w.svc.Volume(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		release, err := first.Volume(v)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.recover(locked, "db")
		if api.CodeOf(err) != api.CodeBusy {
			t.Errorf("%s is locked: %v", name, err)
		}
		says(t, err.Error(), "volume tank/"+name+" is being worked on by the first (process ", "untouched")
		release()
	}
	if _, err := w.recover(locked, "db"); err != nil {
		t.Error(err)
	}
	v, err := w.svc.Volume(t.Context(), "db")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Volume(v); err != nil {
		t.Errorf("the lock of a recovery that has ended: %v", err)
	}
	first.Release()
}

func TestIncoherentSwapIsTold(t *testing.T) {
	w := newWorld(t, 100, "db")
	w.backup("db")
	w.svc.Incoherent = true
	if res, err := w.recover(nil, "db"); err != nil || res.Swap.Coherent {
		t.Errorf("%+v %v", res, err)
	}
}

func TestAllowHolders(t *testing.T) {
	w := newWorld(t, 100, "db")
	w.backup("db")
	w.write("db", 66)
	w.svc.Held["db"] = []api.Holder{{Kind: "process", Detail: "a raw user"}}
	if _, err := w.recover(func(o *RecoverOptions) { o.AllowHolders = true; o.Busy = api.BusyRefuse; o.HoldFor = 3 * time.Second }, "db"); err != nil {
		t.Fatal(err)
	}
	w.holds("db", 2)
	if req := w.svc.Swaps[0]; !req.AllowHolders || req.Busy != api.BusyRefuse || req.HoldFor != 3 {
		t.Errorf("%+v", req)
	}
}

func TestForget(t *testing.T) {
	w := newWorld(t, 100, "db")
	var mine []string
	for i := range 4 {
		b, err := Backup(t.Context(), BackupOptions{Service: w.svc, Repo: w.repo, Volumes: []string{"db"}, Job: "j", Tags: []string{"save-point"}})
		must(t, err)
		mine = append(mine, b.ID)
		if i == 1 {
			for _, o := range []BackupOptions{{Job: "k", Tags: []string{"save-point"}}, {Job: "j"}} {
				o.Service, o.Repo, o.Volumes = w.svc, w.repo, []string{"db"}
				_, err := Backup(t.Context(), o)
				must(t, err)
			}
		}
	}
	deleted, err := Forget(t.Context(), w.repo, "j", "save-point", 2)
	if err != nil || !slices.Equal(deleted, mine[:2]) {
		t.Errorf("deleted %q of %q, %v", deleted, mine, err)
	}
	list, err := w.repo.List(t.Context())
	if err != nil || len(list) != 4 {
		t.Errorf("%d are left, %v", len(list), err)
	}
	var ids []string
	for _, b := range list {
		ids = append(ids, b.ID)
	}
	if !slices.Contains(ids, mine[2]) || !slices.Contains(ids, mine[3]) {
		t.Errorf("left are %q", ids)
	}
}

// A reason that is too long for the label must not cost the failed data its label.
func TestLongReasonIsCut(t *testing.T) {
	w := newWorld(t, 100, "db")
	w.backup("db")
	if _, err := w.recover(func(o *RecoverOptions) { o.Reason = strings.Repeat("é", api.MaxReason+1) }, "db"); err != nil {
		t.Fatal(err)
	}
	if q := w.show("db-spare").Position.Quarantine; q == nil || q.Reason != strings.Repeat("é", api.MaxReason) {
		t.Errorf("the label is %.200v", q)
	}
}

// TestReasonOnTheLabel: a step can fail with any text, and its data is labelled
// all the same.
func TestReasonOnTheLabel(t *testing.T) {
	w := newWorld(t, 100, "db")
	w.backup("db")
	_, err := w.recover(func(o *RecoverOptions) { o.Reason = "start /x: no such file\n\x1b[2J  (look again)\n" }, "db")
	if err != nil {
		t.Fatal(err)
	}
	if q := w.show("db-spare").Position.Quarantine; q == nil || q.Reason != "start /x: no such file [2J (look again)" {
		t.Errorf("label %+v", q)
	}
}
