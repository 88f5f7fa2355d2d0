package backup

import (
	"errors"
	"slices"
	"testing"
)

func TestDiff(t *testing.T) {
	r, m := memRepo(t)
	old := image(1, 30)
	now := slices.Clone(old)
	now[5*testChunk+7] ^= 1
	now[6*testChunk] ^= 1
	copy(now[20*testChunk:][:testChunk], make([]byte, testChunk))
	now[20*testChunk] = 1
	now = append(now, 5) // and grown
	a, b := create(t, r, CreateOptions{}, source(t, "db", old)), create(t, r, CreateOptions{}, source(t, "db", now))
	var got []Range
	res, err := r.Diff(t.Context(), DiffOptions{A: a.ID, B: "latest"}, func(x Range) error {
		got = append(got, x)
		return nil
	})
	want := []Range{{5 * testChunk, 2 * testChunk}, {20 * testChunk, testChunk}, {30 * testChunk, 513}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if res.A != a.ID || res.B != b.ID || res.Volume.Size != int64(len(now)) || res.Bytes != 3*testChunk+513 || res.Ranges != 3 {
		t.Errorf("result: %+v", res)
	}
	res, err = r.Diff(t.Context(), DiffOptions{A: a.ID, B: a.ID}, func(Range) error { return errors.New("none was wanted") })
	if err != nil || res.Bytes != 0 {
		t.Errorf("a backup and itself: %+v, %v", res, err)
	}
	stop := errors.New("stop")
	if _, err = r.Diff(t.Context(), DiffOptions{A: a.ID, B: b.ID}, func(Range) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
	_, err = r.Diff(t.Context(), DiffOptions{A: a.ID, B: b.ID, Volume: "other"}, nil)
	wantErr(t, "another volume", err, ErrNoVolume, "tank/db")
	if n := m.Names("leases"); len(n) != 0 {
		t.Errorf("leases are left: %v", n)
	}
}
