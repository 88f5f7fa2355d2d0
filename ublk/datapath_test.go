package ublk

import (
	"errors"
	"testing"
)

func TestChoosingADataPath(t *testing.T) {
	file, _ := newFileBackend(t, 1<<20)
	null := handlerBackend(t, Null{})
	data := handlerBackend(t, &orderHandler{})
	const old, mid, new = required, required | zeroCopyFlags, required | batchFlags
	for _, tc := range []struct {
		ask     DataPath
		have    Features
		backend *Backend
		want    DataPath
		ok      bool
	}{
		{DataPathAuto, old, file, DataPathCopy, true},
		{DataPathAuto, mid, file, DataPathZeroCopy, true},
		{DataPathAuto, new, file, DataPathBatch, true},
		{DataPathAuto, new, null, DataPathBatch, true},
		{DataPathAuto, new, data, DataPathCopy, true},
		{DataPathAuto, required | AutoBufReg, file, DataPathCopy, true},
		{DataPathCopy, new, file, DataPathCopy, true},
		{DataPathZeroCopy, new, file, DataPathZeroCopy, true},
		{DataPathZeroCopy, old, file, 0, false},
		{DataPathBatch, mid, file, 0, false},
		{DataPathBatch, new, data, 0, false},
	} {
		got, flags, err := tc.ask.choose(tc.have, tc.backend)
		if tc.ok != (err == nil) || got != tc.want {
			t.Errorf("%v of %v on %s: %v, %v", tc.ask, tc.have, tc.backend.path, got, err)
			continue
		}
		if err != nil && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%v of %v: %v, want ErrUnsupported", tc.ask, tc.have, err)
		}
		// The device's flags tell a successor the same.
		if err == nil && (flags|required).DataPath() != got {
			t.Errorf("%v: a device with flags %v takes %v", got, flags, (flags | required).DataPath())
		}
	}
}

func TestDataPathNames(t *testing.T) {
	for p := DataPathAuto; p <= DataPathBatch; p++ {
		if got, err := ParseDataPath(p.String()); err != nil || got != p {
			t.Errorf("%v: %v, %v", p, got, err)
		}
	}
	if _, err := ParseDataPath("fast"); err == nil {
		t.Error("an unknown path was accepted")
	}
}

func TestPieceSize(t *testing.T) {
	for _, tc := range []struct{ n, most, want uint64 }{
		{128 << 10, 124 << 10, 64 << 10},
		{1 << 20, 128 << 10, 128 << 10},
		{132 << 10, 128 << 10, 68 << 10},
		{129 << 10, 128 << 10, 68 << 10},
		{8 << 10, 4096, 4096},
	} {
		if got := pieceSize(tc.n, tc.most); got != tc.want {
			t.Errorf("%d in pieces of at most %d: %d, want %d", tc.n, tc.most, got, tc.want)
		}
	}
	for n := uint64(4096); n <= 1<<20; n += 512 {
		for _, most := range []uint64{4096, 8192, 124 << 10, 256 << 10} {
			if got := pieceSize(n, most); got > most || got%4096 != 0 || got == 0 {
				t.Fatalf("%d in pieces of at most %d: %d", n, most, got)
			}
		}
	}
}
