//go:build vm

package dm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var ctx = context.Background()

func control(t *testing.T) *Control {
	t.Helper()
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := c.List()
		if err != nil {
			t.Error(err)
		}
		for _, l := range left {
			if strings.HasPrefix(l.Name, "dmtest") {
				t.Errorf("device %s is left over", l.Name)
				if err := c.Remove(ByName(l.Name), false); err != nil {
					t.Error(err)
				}
			}
		}
		c.Close()
	})
	return c
}

func disk(t *testing.T, n int) Device {
	t.Helper()
	path := fmt.Sprintf("/dev/nvme%dn1", n)
	if list := strings.Fields(os.Getenv("SWAPBACK_TEST_DISKS")); n < len(list) {
		path = list[n]
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return DeviceOf(st.Rdev)
}

// device makes a device that the test's end removes.
func device(t *testing.T, c *Control, name string, table Table) Info {
	t.Helper()
	info, err := c.Create("dmtest-"+name, "DMTEST-"+name)
	if err != nil {
		t.Fatal(err)
	}
	ref := ByUUID(info.UUID)
	t.Cleanup(func() {
		if err := c.Remove(ref, false); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(c.Load(ref, table, false), c.Resume(ctx, ref)); err != nil {
		t.Fatal(err)
	}
	if info, err = c.Info(ref); err != nil {
		t.Fatal(err)
	}
	return info
}

func TestVersionAndTargets(t *testing.T) {
	c := control(t)
	v, err := c.Version()
	if err != nil || v.Major != 4 || v.Minor < 41 {
		t.Errorf("version %s, %v", v, err)
	}
	targets, err := c.Targets()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, x := range targets {
		have[x.Name] = x.Version.Major > 0
	}
	for _, want := range []string{"linear", "striped", "error"} {
		if !have[want] {
			t.Errorf("target %s is missing in %v", want, targets)
		}
	}
}

func TestLifeOfADevice(t *testing.T) {
	c := control(t)
	a, b := disk(t, 0), disk(t, 1)
	table := Table{
		{0, 2048, Linear{a, 2048}},
		{2048, 4096, Striped{128, []Linear{{a, 8192}, {b, 8192}}}},
		{6144, 8, ErrorTarget{}},
	}
	info := device(t, c, "life", table)
	ref := ByUUID(info.UUID)
	if !info.Active || info.Inactive || info.Suspended || info.Targets != 3 || info.OpenCount != 0 || info.Name != "dmtest-life" {
		t.Errorf("info %+v", info)
	}
	if _, err := os.Stat(info.Path()); err != nil {
		t.Error(err)
	}
	if _, err := c.Create("dmtest-life", "DMTEST-other"); !errors.Is(err, ErrExists) {
		t.Errorf("same name: %v", err)
	}
	if _, err := c.Create("dmtest-other", "DMTEST-life"); !errors.Is(err, ErrExists) {
		t.Errorf("same UUID: %v", err)
	}
	got, err := c.Table(ref, false)
	if err != nil || !got.Equal(table) {
		t.Errorf("table\n%s\n%v", got, err)
	}
	deps, err := c.Deps(ref)
	if err != nil || len(deps) != 2 {
		t.Errorf("deps %v, %v", deps, err)
	}
	status, err := c.Status(ref)
	if err != nil || len(status) != 3 || status[1].Kind != "striped" || status[1].Start != 2048 {
		t.Errorf("status %+v, %v", status, err)
	}
	list, err := c.List()
	if err != nil || !containsDevice(list, Listed{info.Name, info.UUID, info.Device}) {
		t.Errorf("list %v, %v", list, err)
	}
	// An inactive table, cleared and not.
	next := Table{{0, 6152, Linear{b, 4096}}}
	if err := c.Load(ref, next, false); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Table(ref, true); err != nil || !got.Equal(next) {
		t.Errorf("inactive table\n%s\n%v", got, err)
	}
	if err := c.Clear(ref); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Table(ref, true); err != nil || len(got) != 0 {
		t.Errorf("cleared table\n%s\n%v", got, err)
	}
	for range 2 { // a second suspend does nothing
		if err := c.Suspend(ctx, ref, SuspendOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := c.Info(ref); err != nil || !info.Suspended {
		t.Errorf("suspended: %+v, %v", info, err)
	}
	if err := errors.Join(c.Load(ref, next, false), c.Resume(ctx, ref)); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Table(ref, false); err != nil || !got.Equal(next) {
		t.Errorf("table after resume\n%s\n%v", got, err)
	}
}

func containsDevice(list []Listed, want Listed) bool {
	for _, l := range list {
		if l == want {
			return true
		}
	}
	return false
}

func TestBusyAndDeferredRemove(t *testing.T) {
	c := control(t)
	info, err := c.Create("dmtest-busy", "DMTEST-busy")
	if err != nil {
		t.Fatal(err)
	}
	ref := ByUUID(info.UUID)
	if err := errors.Join(c.Load(ref, Table{{0, 8, ErrorTarget{}}}, false), c.Resume(ctx, ref)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(info.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(ref, false); !errors.Is(err, ErrBusy) {
		t.Errorf("remove: %v", err)
	}
	if err := c.Remove(ref, true); err != nil {
		t.Error(err)
	}
	if info, err := c.Info(ref); err != nil || !info.DeferredRemove || info.OpenCount != 1 {
		t.Errorf("info %+v, %v", info, err)
	}
	f.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		_, err := c.Info(ref)
		if errors.Is(err, ErrNotFound) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("device is still there: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := c.Remove(ref, false); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove of nothing: %v", err)
	}
}

func TestManyTargetsGrowTheBuffer(t *testing.T) {
	c := control(t)
	var table Table
	for i := range uint64(2000) {
		table = append(table, Entry{8 * i, 8, Linear{disk(t, 0), 16 * i}})
	}
	info := device(t, c, "many", table)
	got, err := c.Table(ByUUID(info.UUID), false)
	if err != nil || !got.Equal(table) {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

// TestSuspendIsCalledOff suspends a device whose I/O never ends, because the
// device below it is suspended.
func TestSuspendIsCalledOff(t *testing.T) {
	c := control(t)
	lower := device(t, c, "lower", Table{{0, 64, Linear{disk(t, 0), 0}}})
	upper := device(t, c, "upper", Table{{0, 64, Linear{lower.Device, 0}}})
	if err := c.Suspend(ctx, ByUUID(lower.UUID), SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	read := make(chan error)
	go func() {
		f, err := os.Open(upper.Path())
		if err == nil {
			_, err = f.Read(make([]byte, 512))
			f.Close()
		}
		read <- err
	}()
	// Whether the read is in flight yet shows by the suspend that can't end.
	for {
		limited, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		err := c.Suspend(limited, ByUUID(upper.UUID), SuspendOptions{})
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Resume(ctx, ByUUID(upper.UUID)); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := c.Info(ByUUID(upper.UUID)); err != nil || info.Suspended {
		t.Errorf("after it: %+v, %v", info, err)
	}
	if err := c.Resume(ctx, ByUUID(lower.UUID)); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Errorf("the read: %v", err)
	}
}

func TestSnapshotTargets(t *testing.T) {
	c := control(t)
	origin := device(t, c, "origin", Table{{0, 2048, Linear{disk(t, 0), 0}}})
	cow := device(t, c, "cow", Table{{0, 2048, Linear{disk(t, 1), 0}}})
	top := device(t, c, "top", Table{{0, 2048, SnapshotOrigin{origin.Device}}})
	write(t, top.Path(), 'a')
	want := Table{{0, 2048, Snapshot{Origin: origin.Device, COW: cow.Device, Chunk: 16}}}
	snap := device(t, c, "snap", want)
	write(t, top.Path(), 'b')
	got, err := c.Table(ByUUID(snap.UUID), false)
	if err != nil || !got.Equal(want) {
		t.Errorf("table %s, %v", got, err)
	}
	status, err := c.Status(ByUUID(snap.UUID))
	if err != nil || len(status) != 1 {
		t.Fatalf("%+v, %v", status, err)
	}
	if s, err := ParseSnapshotStatus(status[0].Text); err != nil || s.Used == 0 || s.Total != 2048 || s.Invalid {
		t.Errorf("status %q: %+v, %v", status[0].Text, s, err)
	}
	for path, fill := range map[string]byte{snap.Path(): 'a', top.Path(): 'b', origin.Path(): 'b'} {
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(b[:4096], bytes.Repeat([]byte{fill}, 4096)) {
			t.Errorf("%s does not begin with %c: %v", path, fill, err)
		}
	}
}

func write(t *testing.T, path string, fill byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte{fill}, 4096)); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnlyTable(t *testing.T) {
	c := control(t)
	info, err := c.Create("dmtest-ro", "DMTEST-ro")
	if err != nil {
		t.Fatal(err)
	}
	ref := ByUUID(info.UUID)
	if err := errors.Join(c.Load(ref, Table{{0, 8, Linear{disk(t, 0), 0}}}, true), c.Resume(ctx, ref)); err != nil {
		t.Fatal(err)
	}
	if info, err := c.Info(ref); err != nil || !info.ReadOnly {
		t.Errorf("info %+v, %v", info, err)
	}
	f, err := os.OpenFile(info.Path(), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.Write(make([]byte, 512))
		err = errors.Join(err, f.Sync())
		f.Close()
	}
	if err == nil {
		t.Error("a read-only device was written to")
	}
	if err := c.Remove(ref, false); err != nil {
		t.Error(err)
	}
}

func TestTableErrors(t *testing.T) {
	c := control(t)
	info, err := c.Create("dmtest-bad", "DMTEST-bad")
	if err != nil {
		t.Fatal(err)
	}
	ref := ByUUID(info.UUID)
	for name, table := range map[string]Table{
		"no such target": {{0, 8, Other{"nonsense", ""}}},
		"no such device": {{0, 8, Linear{Device{1234, 5}, 0}}},
		"past the end":   {{0, 8, Linear{disk(t, 0), 1 << 50}}},
		"odd stripes":    {{0, 129, Striped{128, []Linear{{disk(t, 0), 0}, {disk(t, 1), 0}}}}},
	} {
		err := c.Load(ref, table, false)
		var e *Error
		if !errors.As(err, &e) || e.Object != "DMTEST-bad" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.Remove(ref, false); err != nil {
		t.Error(err)
	}
}
