package dmswap

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"reflect"
	"strings"
	"testing"
)

// history knows which commits were made on top of which, and which were answered.
type history struct {
	parent   map[string]string
	answered map[string]bool
	// unclear is set when a commit was not answered, or a member left out: an
	// epoch may have begun on some members that changed nothing that shows here.
	unclear bool
}

func (h *history) descends(from, ancestor string) bool {
	for at := from; ; at = h.parent[at] {
		if at == ancestor {
			return true
		}
		if at == "" {
			return false
		}
	}
}

// holds returns what the newest valid slot of a disk says.
func (w *world) holds(i int) string {
	var best *slotState
	for j := range 2 {
		if st := readSlot(w.disks[i], &w.labels[i], j); st.err == nil && (best == nil || st.header.Generation > best.header.Generation) {
			best = &st
		}
	}
	if best == nil {
		return ""
	}
	return best.meta.Positions[0].DescendsFrom
}

// TestMembersComeAndGo opens a pool again and again on some of its members, lets
// disks fail, kills the process and cuts the power. A pool that opens never
// lacks a commit that was answered and that one of its present members has; one
// that is refused is split indeed.
func TestMembersComeAndGo(t *testing.T) {
	walks := 250
	if testing.Short() {
		walks = 60
	}
	seen := map[string]int{}
	for seed := range int64(walks) {
		rng := rand.New(rand.NewSource(seed))
		w := newWorld(t, []int64{4, 4, 4}[:2+rng.Intn(2)]...)
		p := w.open(t)
		mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
		h := &history{parent: map[string]string{}, answered: map[string]bool{"": true}}
		for step := 0; step < 12; step++ {
			away := rng.Intn(1<<len(w.disks) - 1)
			if rng.Intn(3) == 0 {
				away = 0
			}
			if !walkStep(t, w, h, rng, away, fmt.Sprintf("%d.%d", seed, step), seen) {
				step = 12
			}
			if t.Failed() {
				t.Fatalf("that was seed %d, without %b of %d", seed, away, len(w.disks))
			}
		}
	}
	t.Log(seen)
	for _, what := range []string{"split", "whole", "degraded", "member brought up", "answered", "not answered"} {
		if seen[what] == 0 {
			t.Errorf("never seen: %s", what)
		}
	}
}

// walkStep opens the pool without the members in the set away, commits, and
// ends. It returns false when the pool is split.
func walkStep(t *testing.T, w *world, h *history, rng *rand.Rand, away int, name string, seen map[string]int) bool {
	isAway := func(i int) bool { return away>>i&1 == 1 }
	var present []string
	for i := range w.disks {
		if !isAway(i) {
			present = append(present, w.holds(i))
		}
	}
	if rng.Intn(4) == 0 {
		w.effects, w.deadline = 0, 1+rng.Intn(12) // dies while it opens, or soon after
	}
	p, err := w.tryOpenOn(isAway)
	if errors.Is(err, ErrSplit) {
		seen["split"]++
		for _, a := range present {
			for _, b := range present {
				if !h.descends(a, b) && !h.descends(b, a) {
					return false
				}
			}
		}
		if h.unclear {
			seen["split, but not by what shows"]++
			return false
		}
		t.Errorf("refused, but nobody went his own way: %q: %v", present, err)
		return false
	}
	if err != nil && !w.dead {
		t.Error(err)
		return false
	}
	if err == nil {
		v, _ := p.Volume("a")
		now := v.Position.DescendsFrom
		for _, had := range present {
			if h.answered[had] && !h.descends(now, had) {
				t.Errorf("opened to %q, but %q was answered and a member has it: %q", now, had, present)
			}
			if had != now {
				seen["member brought up"]++
			}
		}
		if p.Info().Degraded() {
			seen["degraded"]++
		} else {
			seen["whole"]++
		}
		walkCommits(w, h, rng, p, now, name, seen)
	}
	h.unclear = h.unclear || w.dead
	w.end(rng.Intn(2) == 0, rng)
	return true
}

func walkCommits(w *world, h *history, rng *rand.Rand, p *Pool, now, name string, seen map[string]int) {
	if w.deadline == 0 && rng.Intn(2) == 0 {
		w.effects, w.deadline = 0, 1+rng.Intn(30)
	}
	if rng.Intn(4) == 0 {
		bad := fmt.Sprintf("disk%d", rng.Intn(len(w.disks)))
		only := []string{"", "fua end", "fua write", "sync"}[rng.Intn(4)]
		w.fail = func(what string) error {
			if strings.HasPrefix(what, only) && strings.HasSuffix(what, bad) {
				return errors.New("injected")
			}
			return nil
		}
	}
	for i := range rng.Intn(4) {
		next := fmt.Sprintf("%s.%d", name, i)
		h.parent[next] = now
		if err := p.SetPosition(ctx, "a", func(a *PositionAttrs) { a.DescendsFrom = next }); err != nil || w.dead {
			seen["not answered"]++
			h.unclear = true
			return
		}
		now, h.answered[next] = next, true
		for i := range w.disks {
			state, _ := p.memberState(i)
			h.unclear = h.unclear || state == MemberFailed
		}
		seen["answered"]++
	}
}

// TestAnOldCopyOfAMemberThatWasAway: its extents are older than what it was
// known to hold.
func TestAnOldCopyOfAMemberThatWasAway(t *testing.T) {
	w := newWorld(t, 8, 8)
	p := w.open(t)
	mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
	commits := func(p *Pool, n int) {
		t.Helper()
		for range n {
			if err := p.SetVolume(ctx, "a", func(a *VolumeAttrs) { a.DeviceNumber++ }); err != nil {
				t.Fatal(err)
			}
		}
	}
	old := bytes.Clone(w.disks[1].bytes)
	commits(p, 3)
	p, err := w.tryOpenOn(func(i int) bool { return i == 1 })
	if err != nil {
		t.Fatal(err)
	}
	commits(p, 3)
	recent := bytes.Clone(w.disks[1].bytes)
	copy(w.disks[1].bytes, old)
	if _, err := w.tryOpen(); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrSplit) || !strings.Contains(err.Error(), "old copy") {
		t.Errorf("the old copy: %v", err)
	}
	copy(w.disks[1].bytes, recent)
	mustCheck(t, w.open(t))
}

// TestNewestIsDamaged: going back by a commit that was answered is not opening.
func TestNewestIsDamaged(t *testing.T) {
	for _, members := range []int{1, 2} {
		w := newWorld(t, []int64{8, 8}[:members]...)
		p := w.open(t)
		mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20})
		slot := p.store.members[0].newest
		w.disks[0].bytes[w.labels[0].Slots[slot]+slotBody+20] ^= 1
		again, err := w.tryOpen()
		if members == 2 {
			// The other member has it, and this one gets it back.
			if err != nil {
				t.Fatal(err)
			}
			mustCheck(t, again)
			continue
		}
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "generation 2 was committed") || Remedy(err) == "" {
			t.Errorf("got %v", err)
		}
	}
}

// TestUnreadableMember: a member with I/O errors is as good as missing and is not
// written to, and the extents on it answer errors.
func TestUnreadableMember(t *testing.T) {
	w := populated(t)
	head := bytes.Clone(w.disks[1].bytes)
	w.disks[1].bad = func(off, _ int64) bool { return off >= slotsOffset }
	p := w.open(t)
	mustCheckDegraded(t, p)
	degraded := map[string]bool{}
	for _, v := range p.Volumes() {
		table, err := w.kernel.Table(p.ref(v.UUID, ""), false)
		if err != nil {
			t.Fatal(err)
		}
		if degraded[v.Name] = strings.Contains(table.String(), "error"); degraded[v.Name] != (v.Degraded != "") {
			t.Errorf("volume %s is degraded: %q, and has the table\n%s", v.Name, v.Degraded, table)
		}
	}
	if !degraded["s"] || degraded["a"] == degraded["b"] {
		t.Fatalf("degraded: %v", degraded)
	}
	refusals(t, p)
	if !bytes.Equal(w.disks[1].bytes, head) {
		t.Error("the member was written to")
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	w.disks[1].bad = nil
	again := w.open(t)
	mustCheck(t, again)
}

// refusals wants a degraded pool to refuse what is to be refused.
func refusals(t *testing.T, p *Pool) {
	t.Helper()
	for name, call := range map[string]func() error{
		"grow":     func() error { _, err := p.GrowVolume(ctx, "s", 8<<20); return err },
		"snapshot": func() error { _, err := p.OpenSnapshot(ctx, "s", SnapshotOptions{}); return err },
	} {
		before := fingerprint(p)
		if err := call(); !errors.Is(err, ErrDegraded) || !strings.Contains(err.Error(), "volume s is degraded: member 1 (disk1)") || Remedy(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		if fingerprint(p) != before {
			t.Errorf("%s: something has changed", name)
		}
	}
	// A swap is how the name of such a volume comes back.
	before, _ := p.Volume("s")
	if err := swapNow(p, SwapPair{A: "s", B: "d"}); err != nil {
		t.Errorf("swap: %v", err)
	}
	if d, _ := p.Volume("d"); d.Degraded == "" || d.Position.ID != before.Position.ID {
		t.Errorf("after the swap d shows %+v", d)
	}
	if err := swapNow(p, SwapPair{A: "s", B: "d"}); err != nil {
		t.Errorf("swap back: %v", err)
	}
	v := mustCreate(t, p, VolumeSpec{Name: "fresh", Size: 2 << 20})
	if m := v.Position.Segments[0].Stripes[0].Member; m != 0 || v.Degraded != "" {
		t.Errorf("created on member %d: %q", m, v.Degraded)
	}
	if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "wide", Size: 2 << 20, Stripes: 2}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("stripes over a missing member: %v", err)
	}
	if err := p.DeleteVolume(ctx, "s"); err != nil {
		t.Errorf("delete of a degraded volume: %v", err)
	}
	mustCheckDegraded(t, p)
}

// TestDamagedLabel: a member is recognised by its metadata; a wiped one is not.
func TestDamagedLabel(t *testing.T) {
	for _, members := range []int{1, 2} {
		for name, damage := range map[string]func(label []byte){
			"a byte":  func(l []byte) { l[200] ^= 1 },
			"garbage": func(l []byte) { copy(l, bytes.Repeat([]byte("garbage!"), 512)) },
			"wiped":   func(l []byte) { clear(l) },
		} {
			w := newWorld(t, []int64{8, 8}[:members]...)
			if err := w.open(t).Close(); err != nil {
				t.Fatal(err)
			}
			p := w.open(t)
			mustCreate(t, p, VolumeSpec{Name: "a", Size: 1 << 20}) // fills the second slot
			last := len(w.disks) - 1
			damage(w.disks[last].bytes[labelOffset : labelOffset+labelSize])
			l, ok := recognise(w.disks[last], w.labels[last].DiskSize, 0)
			if ok != (name != "wiped") || ok && !reflect.DeepEqual(l, w.labels[last]) {
				t.Errorf("%s: recognised %v as %+v, not %+v", name, ok, l, w.labels[last])
			}
			again, err := w.tryOpen()
			if name == "wiped" {
				if !errors.Is(err, errNoLabel) {
					t.Errorf("wiped: %v", err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if r, err := again.Check(ctx); err != nil || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "label") || again.Info().Degraded() {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
		}
	}
}

// TestEveryCrashOnSomeMembers kills the process at every point of a swap and opens
// the pool on every set of its members, each once as it is, once with a damaged
// slot on each of them, and once after the others were used without it. The pool
// is in one of two worlds, or it is refused for the right reason.
func TestEveryCrashOnSomeMembers(t *testing.T) {
	base := newWorld(t, 16, 16, 16)
	p := base.open(t)
	for _, name := range []string{"a", "b", "c"} {
		mustCreate(t, p, VolumeSpec{Name: name, Size: 4 << 20})
	}
	op := operation{"swap", func(p *Pool) error { return swapNow(p, SwapPair{A: "a", B: "b"}) }}
	before, after, effects := outcomes(t, base, op, wholeMachine(t))
	const all = 1<<3 - 1
	seen := map[string]int{}
	for n := 1; n <= effects+1; n += stride() {
		crashed := base.clone()
		p := crashed.open(t)
		crashed.effects, crashed.deadline = 0, n
		answered := op.run(p) == nil
		crashed.reborn()
		for present := 1; present <= all; present++ {
			for damaged := -1; damaged < 6; damaged++ {
				if damaged >= 0 && present>>(damaged/2)&1 == 0 {
					continue
				}
				w := crashed.clone()
				if damaged >= 0 {
					l := &w.labels[damaged/2]
					at := l.Slots[damaged%2]
					w.disks[damaged/2].bytes[at+slotBody+9] ^= 1
				}
				p, err := w.tryOpenOn(func(i int) bool { return present>>i&1 == 0 })
				if err != nil {
					// The newest body is damaged behind its header, or the only one.
					right := strings.Contains(err.Error(), "was committed, but on disk") || strings.Contains(err.Error(), "no member has a valid metadata slot")
					if !errors.Is(err, ErrDamaged) || errors.Is(err, ErrSplit) || damaged < 0 || !right {
						t.Errorf("killed before effect %d of %d, members %03b, slot %d damaged: %v", n, effects, present, damaged, err)
					}
					seen["refused"]++
					continue
				}
				got := fingerprint(p)
				if got != before && got != after || answered && got != after {
					t.Fatalf("killed before effect %d of %d, members %03b, slot %d damaged: answered %v\n%s", n, effects, present, damaged, answered, got)
				}
				seen[map[bool]string{true: "new", false: "old"}[got == after]]++
				if err := p.SetVolume(ctx, "c", func(a *VolumeAttrs) { a.DeviceNumber = 77 }); err != nil {
					t.Fatal(err)
				}
				mustCheckDegraded(t, p)
				again, err := w.tryOpen()
				if err != nil {
					t.Fatalf("killed before effect %d of %d, used on members %03b, slot %d damaged: the others don't follow: %v", n, effects, present, damaged, err)
				}
				mustCheck(t, again)
				if v, _ := again.Volume("c"); v.DeviceNumber != 77 {
					t.Errorf("what was answered meanwhile is lost")
				}
			}
		}
		if t.Failed() {
			return
		}
	}
	t.Log(effects, seen)
	if seen["new"] == 0 || seen["old"] == 0 || seen["refused"] == 0 {
		t.Errorf("seen: %v", seen)
	}
}
