package ublk

import "testing"

func newChangeMap(t *testing.T, size, block uint64) *ChangeMap {
	t.Helper()
	m, err := NewChangeMap(size, block)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestChangeMapMarksWholeBlocks(t *testing.T) {
	const block = 64 << 10
	for _, tc := range []struct {
		name   string
		off, n uint64
		first  uint64 // marked blocks
		count  uint64
	}{
		{"inside one block", 4096, 4096, 0, 1},
		{"its last byte", 2*block - 1, 1, 1, 1},
		{"across two", block - 512, 1024, 0, 2},
		{"across words", 60 * block, 70 * block, 60, 70},
		{"everything", 0, 200 * block, 0, 200},
		{"behind the end", 199*block + 1, 100 * block, 199, 1},
		{"far behind", 1 << 62, block, 0, 0},
		{"nothing", 5 * block, 0, 0, 0},
	} {
		m := newChangeMap(t, 200*block, block)
		for range 2 { // a second time changes nothing
			m.Mark(tc.off, tc.n)
		}
		if got := m.Bytes(); got != tc.count*block {
			t.Errorf("%s: %d blocks marked, want %d", tc.name, got/block, tc.count)
		}
		for b := range uint64(200) {
			if want := b >= tc.first && b < tc.first+tc.count; m.Changed(b*block, block) != want {
				t.Errorf("%s: block %d marked: %v", tc.name, b, !want)
			}
		}
	}
}

func TestChangeMapBounds(t *testing.T) {
	for _, block := range []uint64{0, 256, 1000, 65537} {
		if _, err := NewChangeMap(1<<20, block); err == nil {
			t.Errorf("blocks of %d bytes were accepted", block)
		}
	}
	m := newChangeMap(t, 1000, 512) // the last block is not whole
	m.Mark(999, 1)
	if m.Bytes() != 512 || !m.Changed(512, 1) {
		t.Errorf("%d bytes marked", m.Bytes())
	}
	if _, err := NewChangeMapIn(nil, 1000, 512); err == nil {
		t.Error("too little memory was accepted")
	}
	for _, granule := range []uint64{0, 256, 768} {
		if err := m.SetGuard(nil, granule, 2); err == nil {
			t.Errorf("granules of %d bytes were accepted", granule)
		}
	}
	if err := m.SetGuard(nil, 512, 1); err == nil {
		t.Error("granules that don't cover the map were accepted")
	}
	if empty := newChangeMap(t, 0, 512); empty.Changed(0, 512) {
		t.Error("an empty map has a mark")
	}
}

// The queue marks what changes content, and nothing else.
func TestQueueMarksChanges(t *testing.T) {
	b, _ := newFileBackend(t, 8<<20)
	d := drive(t, b, 1)
	m := newChangeMap(t, 8<<20, 64<<10)
	d.gate.setChanges(m)
	d.request(OpRead, 0, 0, 4096)
	d.request(OpFlush, 0, 0, 0)
	if m.Bytes() != 0 {
		t.Errorf("reading marked %d bytes", m.Bytes())
	}
	for i, op := range []Op{OpWrite, OpDiscard, OpWriteZeroes} {
		off := uint64(i+1) << 20
		d.request(op, 0, off, 4096)
		if !m.Changed(off, 4096) || m.Bytes() != uint64(i+1)*64<<10 {
			t.Errorf("%v: %d bytes marked", op, m.Bytes())
		}
	}
}
