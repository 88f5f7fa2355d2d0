//go:build vm

package storm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// swapper swaps one or two pairs of volumes at once. Each position carries a
// stamp that is renewed from time to time.
type swapper struct {
	names  []string
	stamps map[string]string // by position
	shows  map[string]string // volume → position
	after  map[string]string // shows, once the swap under way has happened
	rounds int
}

func newSwapper(s *storm) *swapper {
	j := &swapper{names: []string{"swap-a", "swap-b", "swap-c", "swap-d"}, stamps: map[string]string{}, shows: map[string]string{}}
	for _, name := range j.names {
		v := s.d.Volume(name, 8*rig.MiB)
		j.shows[name] = v.Position.ID
		if err := j.stamp(v); err != nil {
			s.t.Fatal(err)
		}
	}
	return j
}

// places are where the stamps of a volume lie.
func places(size int64) []int64 { return []int64{0, size / 2, size - blockSize} }

func (j *swapper) stamp(v api.Volume) error {
	j.rounds++
	text := fmt.Sprintf("position %s round %d", v.Position.ID, j.rounds)
	j.stamps[v.Position.ID] = text
	for _, at := range places(v.Size) {
		if err := writeStamp(v.Device, at, text); err != nil {
			return err
		}
	}
	return nil
}

func (j *swapper) round(w *worker) error {
	names := append([]string(nil), j.names...)
	w.rand.Shuffle(len(names), func(a, b int) { names[a], names[b] = names[b], names[a] })
	names = names[:2+2*w.rand.IntN(2)]
	var req api.SwapRequest
	j.after = map[string]string{}
	for name, position := range j.shows {
		j.after[name] = position
	}
	for i := 0; i < len(names); i += 2 {
		a, err := w.volume(names[i])
		if err != nil {
			return err
		}
		b, err := w.volume(names[i+1])
		if err != nil {
			return err
		}
		req.Pairs = append(req.Pairs, api.SwapPair{A: a.Name, B: b.Name, ExpectA: a.Position.Generation, ExpectB: b.Position.Generation})
		j.after[a.Name], j.after[b.Name] = j.shows[b.Name], j.shows[a.Name]
	}
	err := w.do(swapping, func(ctx context.Context) error {
		_, err := w.storm.d.Client.Swap(ctx, req)
		return err
	})
	if err != nil {
		return err
	}
	j.shows = j.after
	if err := j.verify(w); err != nil {
		return err
	}
	v, err := w.volume(names[0])
	if err != nil {
		return err
	}
	return j.stamp(v)
}

func (j *swapper) settle(w *worker, cut moment) error {
	if cut != "" {
		v := map[string]string{}
		for _, name := range j.names {
			now, err := w.volume(name)
			if err != nil {
				return err
			}
			v[name] = now.Position.ID
		}
		switch {
		case same(v, j.after):
			j.shows = j.after
		case !same(v, j.shows):
			return fmt.Errorf("after a swap that was cut off the volumes show %v, neither %v nor %v", v, j.shows, j.after)
		}
	}
	return j.verify(w)
}

func same(a, b map[string]string) bool {
	for name := range a {
		if a[name] != b[name] {
			return false
		}
	}
	return true
}

// verify reads every volume.
func (j *swapper) verify(w *worker) error {
	for _, name := range j.names {
		v, err := w.volume(name)
		if err != nil {
			return err
		}
		if v.Position.ID != j.shows[name] {
			return fmt.Errorf("volume %s shows position %s, want %s", name, v.Position.ID, j.shows[name])
		}
		for _, at := range places(v.Size) {
			if err := expectStamp(v.Device, at, j.stamps[v.Position.ID]); err != nil {
				return fmt.Errorf("volume %s: %w", name, err)
			}
		}
	}
	return nil
}

// life makes a volume, grows it some times and deletes it, again and again.
type life struct {
	name    string
	stripes int
	exists  bool
	size    int64
	wanted  int64            // size that a grow under way asks for
	stamps  map[int64]string // by where they are
	rounds  int
}

const (
	lifeStep = 8 * rig.MiB
	lifeMax  = 48 * rig.MiB
)

func newLife(_ *storm, name string, stripes int) *life { return &life{name: name, stripes: stripes} }

func (j *life) round(w *worker) error {
	switch wish := w.wished(); {
	case !j.exists:
		err := w.do(creating, func(ctx context.Context) error {
			_, err := w.storm.d.Client.CreateVolume(ctx, api.CreateVolumeRequest{Name: j.name, Size: lifeStep, Stripes: j.stripes})
			return err
		})
		if err != nil {
			return err
		}
		return j.born(w)
	case wish == deleting || wish == creating || j.size == lifeMax || wish != growing && w.rand.IntN(4) == 0:
		err := w.do(deleting, func(ctx context.Context) error { return w.storm.d.Client.DeleteVolume(ctx, j.name, false) })
		if err == nil {
			j.exists = false
			err = j.verify(w)
		}
		return err
	}
	j.wanted = j.size + lifeStep
	err := w.do(growing, func(ctx context.Context) error {
		_, err := w.storm.d.Client.GrowVolume(ctx, j.name, j.wanted)
		return err
	})
	if err != nil {
		return err
	}
	j.size = j.wanted
	return j.stampEnd(w)
}

// born begins to keep account of a volume that was made.
func (j *life) born(w *worker) error {
	j.exists, j.size, j.stamps = true, lifeStep, map[int64]string{}
	return j.stampEnd(w)
}

// stampEnd writes a stamp to the last block.
func (j *life) stampEnd(w *worker) error {
	v, err := w.volume(j.name)
	if err != nil {
		return err
	}
	j.rounds++
	at, text := j.size-blockSize, fmt.Sprintf("volume %s round %d", j.name, j.rounds)
	if err := writeStamp(v.Device, at, text); err != nil {
		return err
	}
	j.stamps[at] = text
	return j.verify(w)
}

func (j *life) settle(w *worker, cut moment) error {
	v, err := w.volume(j.name)
	if err != nil && code(err) != api.CodeNotFound {
		return err
	}
	there := err == nil
	if there && v.State != api.StateServing {
		// Created it is attached, and it stays so until it is deleted.
		return fmt.Errorf("volume %s is %s %s", j.name, v.State, v.Error)
	}
	switch {
	case cut == creating && there:
		return j.born(w)
	case cut == deleting:
		j.exists = there
	case cut == growing && there && v.Size == j.wanted:
		j.size = j.wanted
	}
	return j.verify(w)
}

func (j *life) verify(w *worker) error {
	v, err := w.volume(j.name)
	if !j.exists {
		if code(err) != api.CodeNotFound {
			return fmt.Errorf("volume %s should not be there: %+v %w", j.name, v, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	size, err := deviceSize(v.Device)
	if err != nil {
		return err
	}
	if v.State != api.StateServing || v.Size != j.size || size != j.size {
		return fmt.Errorf("volume %s is %s with %d bytes, its device has %d, want %d", j.name, v.State, v.Size, size, j.size)
	}
	for at, text := range j.stamps {
		if err := expectStamp(v.Device, at, text); err != nil {
			return fmt.Errorf("volume %s: %w", j.name, err)
		}
	}
	return nil
}

// snapshotter writes to a volume of which it has opened a snapshot, and reads
// the instant from it.
type snapshotter struct {
	name   string
	device string
	rounds int
}

func newSnapshotter(s *storm) *snapshotter {
	j := &snapshotter{name: "snapshot"}
	j.device = s.d.Volume(j.name, 8*rig.MiB).Device
	if err := j.write(); err != nil {
		s.t.Fatal(err)
	}
	return j
}

func (j *snapshotter) text() string { return fmt.Sprintf("round %d", j.rounds) }

func (j *snapshotter) write() error {
	j.rounds++
	for _, at := range places(8 * rig.MiB) {
		if err := writeStamp(j.device, at, j.text()); err != nil {
			return err
		}
	}
	return nil
}

func (j *snapshotter) round(w *worker) error {
	epoch := w.storm.epoch.Load()
	var wrote, read error
	err := w.do(snapping, func(ctx context.Context) error {
		snap, end, err := w.storm.d.Client.OpenSnapshot(ctx, api.SnapshotRequest{Volumes: []string{j.name}})
		if err != nil {
			return err
		}
		instant := j.text()
		wrote = j.write()
		for _, at := range places(8 * rig.MiB) {
			if read == nil {
				read = expectStamp(snap.Volumes[0].Device, at, instant)
			}
		}
		err = end(ctx)
		if w.storm.epoch.Load() != epoch {
			// The snapshot does not outlive its daemon: its reader got an error, or
			// none because it was done.
			read = nil
			return errCut
		}
		return err
	})
	if wrote != nil || read != nil {
		return fmt.Errorf("while a snapshot was open: %w", errors.Join(wrote, read))
	}
	return err
}

func (j *snapshotter) settle(w *worker, _ moment) error {
	v, err := w.volume(j.name)
	if err != nil {
		return err
	}
	// A round of this daemon may just have ended: its snapshot goes a while after
	// the connection that held it. One that was left behind never does.
	for try := 0; v.Snapshot && try < 500; try++ {
		time.Sleep(10 * time.Millisecond)
		if v, err = w.volume(j.name); err != nil {
			return err
		}
	}
	if v.Snapshot {
		return fmt.Errorf("volume %s still has a snapshot", j.name)
	}
	for _, at := range places(v.Size) {
		if err := expectStamp(v.Device, at, j.text()); err != nil {
			return err
		}
	}
	return nil
}
