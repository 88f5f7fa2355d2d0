package dm

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestLayout pins what linux/dm-ioctl.h fixes and the code relies on.
func TestLayout(t *testing.T) {
	var h unix.DmIoctl
	for _, f := range []struct {
		name      string
		got, want uintptr
	}{
		{"sizeof dm_ioctl", unsafe.Sizeof(h), 312},
		{"data_size", unsafe.Offsetof(h.Data_size), 12},
		{"data_start", unsafe.Offsetof(h.Data_start), 16},
		{"target_count", unsafe.Offsetof(h.Target_count), 20},
		{"open_count", unsafe.Offsetof(h.Open_count), 24},
		{"flags", unsafe.Offsetof(h.Flags), 28},
		{"event_nr", unsafe.Offsetof(h.Event_nr), 32},
		{"dev", unsafe.Offsetof(h.Dev), 40},
		{"name", unsafe.Offsetof(h.Name), 48},
		{"uuid", unsafe.Offsetof(h.Uuid), 176},
		{"data", unsafe.Offsetof(h.Data), 305},
		{"sizeof dm_target_spec", unsafe.Sizeof(unix.DmTargetSpec{}), 40},
		{"next", unsafe.Offsetof(unix.DmTargetSpec{}.Next), 20},
		{"target_type", unsafe.Offsetof(unix.DmTargetSpec{}.Target_type), 24},
		{"name in dm_name_list", unsafe.Offsetof(unix.DmNameList{}.Name), nameListName},
		{"sizeof dm_target_versions", unsafe.Sizeof(unix.DmTargetVersions{}), versionListName},
		{"sizeof dm_target_deps", unsafe.Sizeof(unix.DmTargetDeps{}), depsList},
		{"sizeof dm_target_msg", unsafe.Sizeof(unix.DmTargetMsg{}), 8},
		{"DM_TARGET_MSG", unix.DM_TARGET_MSG, 0xc138fd0e},
		{"DM_VERSION", unix.DM_VERSION, 0xc138fd00},
		{"DM_DEV_SUSPEND", unix.DM_DEV_SUSPEND, 0xc138fd06},
		{"DM_TABLE_LOAD", unix.DM_TABLE_LOAD, 0xc138fd09},
		{"DM_TABLE_STATUS", unix.DM_TABLE_STATUS, 0xc138fd0c},
	} {
		if f.got != f.want {
			t.Errorf("%s is %#x, want %#x", f.name, f.got, f.want)
		}
	}
}

func TestRequestHeader(t *testing.T) {
	r := newRequest(Ref{Name: "n", UUID: "u"}, 24)
	got := hex.EncodeToString(r.buf[:48]) + " " + hex.EncodeToString(r.buf[48:50]) + " " + hex.EncodeToString(r.buf[176:178])
	if native.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the expected bytes are little-endian")
	}
	want := "040000001b00000000000000" + // version 4.27.0
		"50010000" + "38010000" + // data_size 336, data_start 312
		strings.Repeat("00", 28) + " 6e00 7500"
	if got != want {
		t.Errorf("header\n got %s\nwant %s", got, want)
	}
}

var tables = []Table{
	{{0, 8, Linear{Device{259, 0}, 2048}}},
	{{0, 8, Linear{Device{259, 0}, 0}}, {8, 4096, Linear{Device{259, 1}, 1 << 40}}},
	{{0, 512, Striped{128, []Linear{{Device{259, 0}, 8}, {Device{8, 16}, 16}}}}},
	{{0, 1, SnapshotOrigin{Device{253, 7}}}},
	{{0, 1, Snapshot{Device{253, 1}, Device{253, 2}, true, 128}}},
	{{0, 1, Snapshot{Device{253, 1}, Device{253, 2}, false, 16}}},
	{{0, 1 << 33, ErrorTarget{}}},
	{{0, 77, Other{"zero", ""}}, {77, 1, Other{"flakey", "8:0 0 1 2 3 drop_writes"}}},
}

// TestTablesThereAndBack encodes tables as they are sent, moves "next" to the
// kernel's way of answering, and decodes them.
func TestTablesThereAndBack(t *testing.T) {
	for _, table := range tables {
		t.Run(table.String(), func(t *testing.T) {
			data, err := encodeTable(table)
			if err != nil {
				t.Fatal(err)
			}
			got := decodeTable(t, asAnswer(data), uint32(len(table)))
			if !got.Equal(table) {
				t.Errorf("got\n%s", got)
			}
			for i := range got {
				if g, w := got[i].Target, table[i].Target; g.Kind() != w.Kind() || g.Params() != w.Params() {
					t.Errorf("entry %d: got %T %v", i, g, g)
				}
			}
		})
	}
}

func decodeTable(t *testing.T, data []byte, count uint32) Table {
	t.Helper()
	lines, err := decodeTargets(data, count)
	if err != nil {
		t.Fatal(err)
	}
	var table Table
	for _, l := range lines {
		target, err := ParseTarget(l.kind, l.params)
		if err != nil {
			t.Fatal(err)
		}
		table = append(table, Entry{l.start, l.length, target})
	}
	return table
}

// asAnswer rewrites "next" from the start of the entry to the start of all, and
// cuts the padding off the end.
func asAnswer(sent []byte) []byte {
	out := slices.Clone(sent)
	last := 0
	for at := 0; at < len(out); {
		last = at
		size := int(native.Uint32(out[at+20:]))
		native.PutUint32(out[at+20:], uint32(at+size))
		at += size
	}
	params := out[last+unix.SizeofDmTargetSpec:]
	return out[:last+unix.SizeofDmTargetSpec+bytes.IndexByte(params, 0)+1]
}

func TestEncodeTableBytes(t *testing.T) {
	if native.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the expected bytes are little-endian")
	}
	data, err := encodeTable(Table{{0, 0x10, Linear{Device{8, 1}, 2}}, {0x10, 0x20, ErrorTarget{}}})
	if err != nil {
		t.Fatal(err)
	}
	want := "0000000000000000" + "1000000000000000" + "00000000" + "30000000" + hex.EncodeToString([]byte("linear")) + strings.Repeat("00", 10) +
		hex.EncodeToString([]byte("8:1 2")) + "000000" +
		"1000000000000000" + "2000000000000000" + "00000000" + "30000000" + hex.EncodeToString([]byte("error")) + strings.Repeat("00", 11) +
		"0000000000000000"
	if got := hex.EncodeToString(data); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestTableValidate(t *testing.T) {
	for name, table := range map[string]Table{
		"empty":     {},
		"no target": {{0, 1, nil}},
		"gap":       {{0, 1, ErrorTarget{}}, {2, 1, ErrorTarget{}}},
		"overlap":   {{0, 2, ErrorTarget{}}, {1, 1, ErrorTarget{}}},
		"late":      {{1, 1, ErrorTarget{}}},
		"no length": {{0, 0, ErrorTarget{}}},
		"huge":      {{0, 1 << 63, ErrorTarget{}}},
		"zero byte": {{0, 1, Other{"linear", "8:0\x00 0"}}},
	} {
		if err := table.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestParseTarget(t *testing.T) {
	for _, tt := range []struct {
		kind, params string
		want         Target // nil: an error
	}{
		{"linear", "259:0 7", Linear{Device{259, 0}, 7}},
		{"linear", "259:0 -7", nil},
		{"linear", "/dev/sda 7", nil},
		{"linear", "259:0", Other{"linear", "259:0"}},
		{"striped", "2 128 1:2 3 4:5 6", Striped{128, []Linear{{Device{1, 2}, 3}, {Device{4, 5}, 6}}}},
		{"striped", "3 128 1:2 3 4:5 6", Other{"striped", "3 128 1:2 3 4:5 6"}},
		{"striped", "x 128", nil},
		{"snapshot", "1:2 3:4 N 128", Snapshot{Device{1, 2}, Device{3, 4}, false, 128}},
		{"snapshot", "1:2 3:4 PO 128", Other{"snapshot", "1:2 3:4 PO 128"}},
		{"snapshot", "1:2 3:4 N 128 1 discard_zeroes_cow", Other{"snapshot", "1:2 3:4 N 128 1 discard_zeroes_cow"}},
		{"snapshot", "1:2 3:4 N many", nil},
		{"snapshot-origin", "1:99999999999", nil},
		{"error", "", ErrorTarget{}},
		{"crypt", "aes", Other{"crypt", "aes"}},
	} {
		got, err := ParseTarget(tt.kind, tt.params)
		if tt.want == nil {
			if err == nil {
				t.Errorf("%s %q: got %v, want an error", tt.kind, tt.params, got)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s %q: %v", tt.kind, tt.params, err)
			continue
		}
		if got.Kind() != tt.want.Kind() || got.Params() != tt.want.Params() || !(Table{{0, 1, got}}).Equal(Table{{0, 1, tt.want}}) {
			t.Errorf("%s %q: got %#v", tt.kind, tt.params, got)
		}
	}
}

func TestParseSnapshotStatus(t *testing.T) {
	for text, want := range map[string]SnapshotStatus{
		"128/4096 0": {128, 4096, 0, false},
		"Invalid":    {Invalid: true},
		"Overflow":   {Invalid: true},
	} {
		if got, err := ParseSnapshotStatus(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "Unknown", "1/2", "1/2 x", "1/2 3 4"} {
		if got, err := ParseSnapshotStatus(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// record builds answers as the kernel lays them out.
type record struct{ bytes []byte }

func (r *record) u32(v uint32)  { r.bytes = native.AppendUint32(r.bytes, v) }
func (r *record) u64(v uint64)  { r.bytes = native.AppendUint64(r.bytes, v) }
func (r *record) text(s string) { r.bytes = append(append(r.bytes, s...), 0) }
func (r *record) align() {
	r.bytes = append(r.bytes, make([]byte, align8(len(r.bytes))-len(r.bytes))...)
}
func (r *record) next(at, n int) { native.PutUint32(r.bytes[at:], uint32(n)) }

func nameList() []byte {
	var r record
	r.u64(unix.Mkdev(253, 3))
	r.u32(0)
	r.text("first")
	r.align()
	r.u32(11)
	r.u32(unix.DM_NAME_LIST_FLAG_HAS_UUID)
	r.text("SWAPBACK-1")
	r.align()
	second := len(r.bytes)
	r.next(8, second)
	r.u64(unix.Mkdev(253, 300))
	r.u32(0)
	r.text("second")
	r.align()
	r.u32(0)
	r.u32(unix.DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID)
	return r.bytes
}

func versionList() []byte {
	var r record
	r.u32(0)
	r.u32(1)
	r.u32(4)
	r.u32(2)
	r.text("linear")
	r.align()
	r.next(0, len(r.bytes))
	r.u32(0)
	r.u32(1)
	r.u32(16)
	r.u32(0)
	r.text("snapshot")
	return r.bytes
}

func TestDecodeNames(t *testing.T) {
	got, err := decodeNames(nameList())
	want := []Listed{{"first", "SWAPBACK-1", Device{253, 3}}, {"second", "", Device{253, 300}}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := decodeNames(make([]byte, 16)); err != nil || got != nil {
		t.Errorf("no devices: got %v, %v", got, err)
	}
}

func TestDecodeVersionsAndDeps(t *testing.T) {
	got, err := decodeVersions(versionList())
	want := []TargetVersion{{"linear", Version{1, 4, 2}}, {"snapshot", Version{1, 16, 0}}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	var r record
	r.u32(2)
	r.u32(0)
	r.u64(unix.Mkdev(259, 1))
	r.u64(unix.Mkdev(8, 1000))
	deps, err := decodeDeps(r.bytes)
	if err != nil || !slices.Equal(deps, []Device{{259, 1}, {8, 1000}}) {
		t.Errorf("got %v, %v", deps, err)
	}
}

// fakeControl answers with f instead of a kernel.
func fakeControl(f ioctlFunc) *Control { return &Control{call: f} }

func header(buf []byte) *unix.DmIoctl { return (*unix.DmIoctl)(unsafe.Pointer(&buf[0])) }

func TestBufferGrows(t *testing.T) {
	answer := asAnswer(must(encodeTable(tables[1])))
	calls := 0
	c := fakeControl(func(cmd uint, buf []byte) error {
		calls++
		h := header(buf)
		if unix.ByteSliceToString(h.Uuid[:]) != "u" || h.Flags&unix.DM_STATUS_TABLE_FLAG == 0 || int(h.Data_size) != len(buf) {
			t.Errorf("call %d: header was not restored", calls)
		}
		if calls == 1 {
			clear(h.Uuid[:])
			h.Flags, h.Data_size = unix.DM_BUFFER_FULL_FLAG, headerSize
			return nil
		}
		h.Flags, h.Target_count = 0, uint32(len(tables[1]))
		h.Data_size = uint32(headerSize + copy(buf[headerSize:], answer))
		return nil
	})
	got, err := c.Table(ByUUID("u"), false)
	if err != nil || !got.Equal(tables[1]) || calls != 2 {
		t.Errorf("got %v, %v after %d calls", got, err, calls)
	}
}

func TestErrorsHaveKinds(t *testing.T) {
	var errno unix.Errno
	c := fakeControl(func(uint, []byte) error { return errno })
	ctx := context.Background()
	for _, tt := range []struct {
		errno unix.Errno
		kind  error
		call  func() error
	}{
		{unix.ENXIO, ErrNotFound, func() error { _, err := c.Info(ByUUID("x")); return err }},
		{unix.EBUSY, ErrExists, func() error { _, err := c.Create("x", "y"); return err }},
		{unix.EBUSY, ErrBusy, func() error { return c.Remove(ByName("x"), false) }},
		{unix.ENOTTY, ErrUnsupported, func() error { return c.Resume(ctx, ByName("x")) }},
	} {
		errno = tt.errno
		err := tt.call()
		if !errors.Is(err, tt.kind) || !errors.Is(err, tt.errno) || !strings.Contains(err.Error(), " x") {
			t.Errorf("%v: got %v", tt.kind, err)
		}
		for _, other := range []error{ErrNotFound, ErrExists, ErrBusy, ErrUnsupported} {
			if other != tt.kind && errors.Is(err, other) {
				t.Errorf("%v is also %v", err, other)
			}
		}
	}
}

func TestMessageBytes(t *testing.T) {
	var sent []byte
	c := fakeControl(func(cmd uint, buf []byte) error {
		if cmd != unix.DM_TARGET_MSG {
			t.Errorf("command %#x", cmd)
		}
		sent = buf[headerSize:]
		return nil
	})
	if err := c.Message(ByName("x"), 7, "mark m1"); err != nil {
		t.Fatal(err)
	}
	if want := append(native.AppendUint64(nil, 7), "mark m1\x00"...); !bytes.Equal(sent, want) {
		t.Errorf("sent % x, want % x", sent, want)
	}
	if err := c.Message(ByName("x"), 0, "a\x00b"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a zero byte: %v", err)
	}
}

func TestCreateRefusesBadNames(t *testing.T) {
	c := fakeControl(func(uint, []byte) error { t.Error("the kernel was asked"); return nil })
	for _, n := range []string{"", "a/b", strings.Repeat("x", MaxName+1), "a\x00b"} {
		if _, err := c.Create(n, "u"); err == nil {
			t.Errorf("name %q accepted", n)
		}
	}
	if _, err := c.Create("a", strings.Repeat("x", MaxUUID+1)); err == nil {
		t.Error("long UUID accepted")
	}
}

// TestSuspendCanBeCalledOff has a suspend that waits until the thread gets a
// signal, as the kernel's does.
func TestSuspendCanBeCalledOff(t *testing.T) {
	c := fakeControl(func(uint, []byte) error {
		ts := unix.NsecToTimespec(int64(time.Hour))
		return unix.Nanosleep(&ts, nil) // EINTR
	})
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := c.Suspend(ctx, ByUUID("x"), SuspendOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestSuspendSurvivesSignals(t *testing.T) {
	left := 3
	c := fakeControl(func(cmd uint, buf []byte) error {
		h := header(buf)
		if h.Flags&unix.DM_SUSPEND_FLAG == 0 || h.Flags&unix.DM_SKIP_LOCKFS_FLAG == 0 {
			t.Error("flags got lost")
		}
		if left--; left > 0 {
			h.Flags = 0
			return unix.EINTR
		}
		return nil
	})
	if err := c.Suspend(context.Background(), ByUUID("x"), SuspendOptions{}); err != nil || left != 0 {
		t.Errorf("got %v with %d left", err, left)
	}
}

func TestMakeNodeWithoutDriver(t *testing.T) {
	dir := t.TempDir()
	misc := filepath.Join(dir, "misc")
	if err := os.WriteFile(misc, []byte("229 fuse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := makeNode(filepath.Join(dir, "mapper", "control"), misc); !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func FuzzDecoders(f *testing.F) {
	f.Add(nameList(), uint32(2))
	f.Add(versionList(), uint32(2))
	for _, table := range tables {
		f.Add(asAnswer(must(encodeTable(table))), uint32(len(table)))
	}
	f.Add(binary.NativeEndian.AppendUint32(nil, 1<<31), uint32(1<<31))
	f.Fuzz(func(t *testing.T, data []byte, count uint32) {
		// No answer has more records than fit into it, whatever it states.
		fits := func(what string, n, size int) {
			if n*size > len(data) {
				t.Errorf("%d %s in %d bytes", n, what, len(data))
			}
		}
		names, _ := decodeNames(data)
		fits("names", len(names), nameListName+1)
		versions, _ := decodeVersions(data)
		fits("versions", len(versions), versionListName+1)
		deps, _ := decodeDeps(data)
		fits("dependencies", len(deps), 8)
		targets, err := decodeTargets(data, count)
		fits("targets", len(targets), unix.SizeofDmTargetSpec+1)
		if err == nil && uint32(len(targets)) != count {
			t.Errorf("%d targets, want %d", len(targets), count)
		}
		for _, x := range targets {
			if strings.ContainsRune(x.kind+x.params, 0) {
				t.Errorf("%+v has a zero byte", x)
			}
		}
	})
}

func FuzzParseTarget(f *testing.F) {
	for _, table := range tables {
		for _, e := range table {
			f.Add(e.Target.Kind(), e.Target.Params())
		}
	}
	f.Fuzz(func(t *testing.T, kind, params string) {
		target, err := ParseTarget(kind, params)
		if err != nil {
			return
		}
		again, err := ParseTarget(target.Kind(), target.Params())
		if err != nil || again.Kind() != target.Kind() || again.Params() != target.Params() {
			t.Errorf("%q %q: %#v became %#v, %v", kind, params, target, again, err)
		}
		_, _ = ParseSnapshotStatus(params)
	})
}
