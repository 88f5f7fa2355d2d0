package codec

import (
	"bytes"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
)

func TestRuns(t *testing.T) {
	d, err := NewDecompressor(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	noise := random(300 << 10)
	run := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }
	for _, tt := range []struct {
		name  string
		parts [][]byte
		most  int // bytes besides the noise and the frame's header
	}{
		{"nothing", nil, 3},
		{"one byte", [][]byte{{7}}, 4},
		{"noise", [][]byte{noise[:100]}, 3},
		{"noise in three blocks", [][]byte{noise}, 9},
		{"a run", [][]byte{run(0, 1000)}, 4 + 3},
		{"a run of three blocks", [][]byte{run(9, 300<<10)}, 3*4 + 3},
		{"a run that is a block", [][]byte{run(9, maxBlock)}, 4 + 3},
		{"a run too short", [][]byte{noise[:99], run(0xff, minRun-2), noise[:99]}, minRun - 2 + 3},
		{"a run at the beginning", [][]byte{run(0xff, minRun), noise[:99]}, 4 + 3},
		{"a run at the end", [][]byte{noise[:99], run(0xff, minRun)}, 3 + 4 + 3},
		{"runs side by side", [][]byte{run(1, minRun), run(2, 2*minRun), run(3, 555)}, 3*4 + 3},
		{"runs between", [][]byte{noise[:99], run(0, 333), noise[:777], run(0, 99), noise[:5]}, 2*7 + 3},
	} {
		plain := bytes.Join(tt.parts, nil)
		got := appendRuns([]byte("before"), plain)
		if !bytes.HasPrefix(got, []byte("before")) {
			t.Errorf("%s: what was there before is not", tt.name)
		}
		got = got[len("before"):]
		literal := 0
		for _, p := range tt.parts {
			if &p[0] == &noise[0] {
				literal += len(p)
			}
		}
		if len(got) > 9+literal+tt.most {
			t.Errorf("%s: %d bytes, want at most 9+%d+%d", tt.name, len(got), literal, tt.most)
		}
		back := make([]byte, len(plain))
		if err := d.Decompress(back, got, format.Zstd); err != nil || !bytes.Equal(back, plain) {
			t.Errorf("%s: comes back wrong, %v", tt.name, err)
		}
	}
}

// Whatever it is, it comes back, from as many bytes as were said.
func FuzzRuns(f *testing.F) {
	d, err := NewDecompressor(1 << 20)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(d.Close)
	f.Add([]byte("noise"), byte(0), 64, 3)
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1}, byte(0), 131072, 2)
	f.Fuzz(func(t *testing.T, p []byte, b byte, n, times int) {
		p = bytes.Repeat(append(p, bytes.Repeat([]byte{b}, n&(1<<18-1))...), times&3)
		if len(p) > 1<<20 {
			return
		}
		got := appendRuns(nil, p)
		if len(got) > runsBound(len(p)) {
			t.Errorf("%d bytes became %d, more than %d", len(p), len(got), runsBound(len(p)))
		}
		back := make([]byte, len(p))
		if err := d.Decompress(back, got, format.Zstd); err != nil || !bytes.Equal(back, p) {
			t.Errorf("%d bytes come back wrong, %v", len(p), err)
		}
	})
}
