package initramfs

import (
	"bytes"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// entry is what a reader of the archive sees. Reading it back by the format's
// description, and not by this package, is the test.
type entry struct {
	name string
	mode uint64
	data string
}

func readArchive(t *testing.T, b []byte) []entry {
	t.Helper()
	var out []entry
	pos := 0
	align := func() { pos = (pos + 3) &^ 3 }
	for {
		if len(b)-pos < 110 || string(b[pos:pos+6]) != "070701" {
			t.Fatalf("no header at byte %d", pos)
		}
		field := func(i int) uint64 {
			v, err := strconv.ParseUint(string(b[pos+6+8*i:pos+14+8*i]), 16, 64)
			if err != nil {
				t.Fatalf("field %d at byte %d: %v", i, pos, err)
			}
			return v
		}
		mode, size, nameSize := field(1), int(field(6)), int(field(11))
		name := string(b[pos+110 : pos+110+nameSize-1])
		pos += 110 + nameSize
		align()
		data := string(b[pos : pos+size])
		pos += size
		align()
		if name == "TRAILER!!!" {
			return out
		}
		out = append(out, entry{name, mode, data})
	}
}

func TestWriter(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	steps := []error{
		w.Char("/dev/console", 0o600, 5, 1),
		w.File("init", 0o755, []byte("hello")),
		w.File("/a/b/c", 0o644, nil),
		w.File("a/b/d", 0o600, []byte("1234")),
		w.Dir("a/b"),
		w.Close(),
	}
	for i, err := range steps {
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	want := []entry{
		{"dev", 0o040755, ""},
		{"dev/console", 0o020600, ""},
		{"init", 0o100755, "hello"},
		{"a", 0o040755, ""},
		{"a/b", 0o040755, ""},
		{"a/b/c", 0o100644, ""},
		{"a/b/d", 0o100600, "1234"},
	}
	got := readArchive(t, buf.Bytes())
	if len(got) != len(want) {
		t.Fatalf("got %d entries, want %d: %v", len(got), len(want), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("entry %d: got %v, want %v", i, got[i], want[i])
		}
	}
	if cpio, err := exec.LookPath("cpio"); err == nil {
		cmd := exec.Command(cpio, "-t", "--quiet")
		cmd.Stdin = &buf
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "a/b/d\n") {
			t.Errorf("cpio -t: %v\n%s", err, out)
		}
	}
}

type fullDisk struct{ room int }

func (f *fullDisk) Write(p []byte) (int, error) {
	if len(p) > f.room {
		return 0, errors.New("no space")
	}
	f.room -= len(p)
	return len(p), nil
}

func TestWriterKeepsItsFirstError(t *testing.T) {
	w := NewWriter(&fullDisk{room: 300})
	_ = w.File("a", 0o644, []byte("1"))
	_ = w.File("b", 0o644, bytes.Repeat([]byte("2"), 400))
	_ = w.File("c", 0o644, []byte("3"))
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("got %v", err)
	}
}
