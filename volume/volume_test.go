package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
)

func TestOnlyOneDaemonPerRunDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	first, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := lockDir(dir); err == nil {
		second.Close()
		t.Fatal("the lock was given twice")
	} else if !strings.Contains(err.Error(), "another swapbackd") {
		t.Errorf("the reason is not plain: %v", err)
	}
	first.Close()
	again, err := lockDir(dir)
	if err != nil {
		t.Fatalf("after the first daemon's end: %v", err)
	}
	again.Close()
}

func TestDeviceTagTellsPoolsAndVolumesApart(t *testing.T) {
	a := deviceTag("pool-1", "volume-1")
	if a != deviceTag("pool-1", "volume-1") {
		t.Error("the tag is not stable")
	}
	if a == deviceTag("pool-1", "volume-2") || a == deviceTag("pool-2", "volume-1") {
		t.Error("different volumes have one tag")
	}
	// removeOrphans finds a pool's devices by the upper bits.
	if a&^(1<<24-1) != tagMagic<<48|poolTag("pool-1") || a>>48 != tagMagic {
		t.Errorf("tag %#x does not begin with magic and pool", a)
	}
}

// Of 300 volumes two may well have one tag of 24 bits, and then each could be
// served as the other.
func TestNewVolumesHaveTagsOfTheirOwn(t *testing.T) {
	pool, taken := "pool-1", map[uint64]bool{}
	n := 0
	draw := func() string { n++; return dmswap.NewUUID() }
	for range 60000 {
		tag := deviceTag(pool, freeUUID(draw, func(uuid string) bool { return taken[deviceTag(pool, uuid)] }))
		if taken[tag] {
			t.Fatalf("tag %#x was given twice", tag)
		}
		taken[tag] = true
	}
	if n == 60000 {
		t.Error("no UUID was refused: the test does not try what it is for")
	}
}

func TestPoolsOfOneName(t *testing.T) {
	found := []dmswap.FoundPool{
		{Name: "tank", UUID: "1", Disks: []string{"/dev/a"}},
		{Name: "other", UUID: "2", Disks: []string{"/dev/b"}},
		{Name: "tank", UUID: "3", Disks: []string{"/dev/c"}},
		{Name: "bad", UUID: "4", Problems: []string{"split"}},
		{Name: "bad", UUID: "5"},
	}
	nobody := func(string) bool { return false }
	got := rivalsOf(found, nobody)
	if len(got) != 2 || !strings.Contains(got["1"], "/dev/c") || !strings.Contains(got["3"], "/dev/a") {
		t.Errorf("none in use: %q", got)
	}
	got = rivalsOf(found, func(uuid string) bool { return uuid == "3" })
	if len(got) != 1 || !strings.Contains(got["1"], "/dev/c") {
		t.Errorf("one in use: %q", got)
	}
}

func TestReplaceLink(t *testing.T) {
	link := filepath.Join(t.TempDir(), "tank", "db")
	for _, to := range []string{"/dev/ublkb0", "/dev/ublkb7"} {
		if err := replaceLink(to, link); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(link); err != nil || got != to {
			t.Errorf("the link points to %q, %v; want %s", got, err, to)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(link))
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the link there is %v, %v", entries, err)
	}
}

func TestMapperLink(t *testing.T) {
	sys := t.TempDir()
	put := func(device, name string) {
		dir := filepath.Join(sys, device, "dm")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "name"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("dm-3", "swapback-tank-db\n")
	put("dm-4", "../../etc/passwd\n")
	if got, err := mapperLink(sys, "/dev/mapper", "/dev/dm-3"); err != nil || got != "/dev/mapper/swapback-tank-db" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{"/dev/dm-4", "/dev/dm-5"} {
		if got, err := mapperLink(sys, "/dev/mapper", bad); err == nil {
			t.Errorf("%s got the link %s", bad, got)
		}
	}
}

func TestMarkQuarantine(t *testing.T) {
	c := &Controller{opt: Options{RunDir: t.TempDir()}}
	mark := filepath.Join(c.opt.RunDir, "quarantine", "ublkb3")
	for _, on := range []bool{false, true, true, false, false} {
		if err := c.markQuarantine(3, on); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(mark); (err == nil) != on {
			t.Errorf("after markQuarantine(%v) the mark: %v", on, err)
		}
	}
	if err := c.markQuarantine(-1, true); err != nil {
		t.Errorf("a volume without a number: %v", err)
	}
}

func TestFromPool(t *testing.T) {
	for _, c := range []struct {
		err  error
		code string
	}{
		{&dmswap.Error{Kind: dmswap.ErrNoSpace, Message: "no room", Remedy: "delete something"}, api.CodeNoSpace},
		{fmt.Errorf("wrapped: %w", &dmswap.GenerationError{Volume: "db", Want: 3, Have: 4}), api.CodeGeneration},
		{&dmswap.QuarantinedError{Volume: "db"}, api.CodeQuarantined},
		{&dmswap.SnapshotOpenError{Volume: "db", Device: "/dev/dm-3"}, api.CodeBusy},
		{&dmswap.DiskInUseError{Disk: "/dev/sda", Found: []string{"ext4"}}, api.CodeInUse},
	} {
		err := fromPool("doing it", c.err)
		var e *api.Error
		if !errors.As(err, &e) || e.Code != c.code {
			t.Errorf("%v became %#v, want code %s", c.err, err, c.code)
			continue
		}
		if e.Remedy == "" || strings.Contains(e.Message, e.Remedy) || !strings.HasPrefix(e.Message, "doing it: ") {
			t.Errorf("message %q and remedy %q", e.Message, e.Remedy)
		}
	}
	if err := fromPool("doing it", nil); err != nil {
		t.Errorf("nil became %v", err)
	}
	if err := fromPool("doing it", os.ErrPermission); !errors.Is(err, os.ErrPermission) || api.CodeOf(err) != api.CodeInternal {
		t.Errorf("a plain error became %v", err)
	}
}

func TestExpectGeneration(t *testing.T) {
	v := dmswap.VolumeInfo{Name: "db", Position: dmswap.Position{Generation: 5}}
	for want, ok := range map[uint64]bool{0: true, 5: true, 4: false, 6: false} {
		err := checkGeneration("tank/db", v, want)
		if (err == nil) != ok || !ok && api.CodeOf(err) != api.CodeGeneration {
			t.Errorf("generation %d against 5: %v", want, err)
		}
	}
}

func TestSwapRequestsAreChecked(t *testing.T) {
	pair := []api.SwapPair{{A: "a", B: "b"}}
	for _, c := range []struct {
		req api.SwapRequest
		ok  bool
	}{
		{api.SwapRequest{Pairs: pair}, true},
		{api.SwapRequest{Pairs: pair, Busy: api.BusyRefuse, HoldFor: 3}, true},
		{api.SwapRequest{}, false},
		{api.SwapRequest{Pairs: pair, Busy: "wait"}, false},
		{api.SwapRequest{Pairs: pair, HoldFor: -1}, false},
		{api.SwapRequest{Pairs: pair, HoldFor: 1e9}, false},
	} {
		s := &swap{c: &Controller{opt: Options{HoldFor: defaultHold}}, req: c.req}
		err := s.check()
		if (err == nil) != c.ok || !c.ok && api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%+v: %v", c.req, err)
		}
		if c.ok && (s.req.Busy == "" || s.req.HoldFor <= 0) {
			t.Errorf("%+v: no defaults: %+v", c.req, s.req)
		}
	}
}

func TestQuarantineKeepsEveryField(t *testing.T) {
	q := api.Quarantine{Reason: "r", Time: time.Unix(1, 0), Volume: "v", Job: "j", Step: "s", ExitCode: 4, Backup: "b"}
	if back := api.Quarantine(dmswap.Quarantine(q)); back != q {
		t.Errorf("%+v became %+v", q, back)
	}
}

// TestLinksAreForEverybody: the mask of the daemon's unit keeps what it makes to
// itself; the links are for everybody who may use a device.
func TestLinksAreForEverybody(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	base := t.TempDir()
	if err := replaceLink("/dev/ublkb0", filepath.Join(base, "swapback", "tank", "db")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"swapback", "swapback/tank"} {
		if fi, err := os.Stat(filepath.Join(base, dir)); err != nil || fi.Mode().Perm() != 0o755 {
			t.Errorf("%s is %v, %v", dir, fi.Mode(), err)
		}
	}
}

// TestHelperNameFits: the kernel cuts a longer one, and nobody would know it again.
func TestHelperNameFits(t *testing.T) {
	if len(HelperName) > 15 {
		t.Errorf("%q has %d bytes", HelperName, len(HelperName))
	}
}

// deadHelper answers nothing but why.
type deadHelper struct{ why error }

func (h deadHelper) PID() int                                   { return 0 }
func (h deadHelper) WriteBack(context.Context) ([]error, error) { return nil, h.why }
func (h deadHelper) CheckAllCoherent(context.Context) error     { return h.why }
func (h deadHelper) Close()                                     {}

// TestPagesThatMayBeLeftForbidASwap: what is still cached would be written to the
// other position, so not even a swap that quarantines goes on.
func TestPagesThatMayBeLeftForbidASwap(t *testing.T) {
	killed := errors.New("killed")
	s := &swap{
		c:       &Controller{},
		helper:  deadHelper{killed},
		req:     api.SwapRequest{Pairs: []api.SwapPair{{A: "a", B: "b", Quarantine: &api.Quarantine{Reason: "r"}}}},
		targets: make([]target, 2), served: []int{0}, held: make([]api.Holder, 1),
	}
	if err := s.writeBack(t.Context()); !errors.Is(err, killed) || s.result.Warning != "" {
		t.Errorf("%v, warning %q", err, s.result.Warning)
	}
}
