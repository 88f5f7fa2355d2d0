package dmswap

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree makes files below a folder; a content of "/" makes a folder.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCandidates(t *testing.T) {
	sys := tree(t, map[string]string{
		"block/nvme0n1/size":                "8388608\n",
		"block/nvme0n1/nvme0n1p1/partition": "1\n",
		"block/sda/size":                    "0\n",
		"block/cciss!c0d0/size":             "16\n",
		"block/loop0/size":                  "16\n",
		"block/loop1/size":                  "16\n",
		"block/loop1/loop/backing_file":     "/x\n",
		"block/ublkb0/size":                 "16\n",
		"block/ram0/size":                   "16\n",
		"block/fd0/size":                    "16\n",
		"block/sr0/size":                    "16\n",
		"block/zram0/size":                  "16\n",
		"block/fdx/size":                    "16\n",
		"block/dm-0/size":                   "16\n",
		"block/dm-0/dm/uuid":                "SWAPBACK-1-2\n",
		"block/dm-1/size":                   "16\n",
		"block/dm-1/dm/uuid":                "LVM-x\n",
		"block/dm-1/dm/suspended":           "0\n",
		"block/dm-2/size":                   "16\n",
		"block/dm-2/dm/suspended":           "1\n",
	})
	got, err := candidates(sys, "/dev")
	want := []string{"/dev/cciss/c0d0", "/dev/dm-1", "/dev/fdx", "/dev/loop1", "/dev/nvme0n1", "/dev/nvme0n1p1"}
	if slices.Sort(got); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := candidates(t.TempDir(), "/dev"); err == nil {
		t.Error("no sysfs, and no error")
	}
}

func TestScanNamed(t *testing.T) {
	if _, err := Scan(ctx, ScanOptions{Disks: []string{"/dev/null"}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("character device: %v", err)
	}
	if _, err := Scan(ctx, ScanOptions{Disks: []string{"/nosuch"}}); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	if _, err := Open(ctx, OpenOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("open of nothing: %v", err)
	}
	if _, err := Open(ctx, OpenOptions{Disks: []string{"/nosuch"}}); !errors.Is(err, ErrNotFound) || Remedy(err) == "" {
		t.Errorf("open of a missing disk: %v", err)
	}
}

func TestFinder(t *testing.T) {
	l := goldenLabel()
	l.Count = 3
	member := func(i int) label { l := l; l.Index = i; return l }
	var f finder
	f.add("/dev/b", member(2))
	other := member(0)
	other.Pool, other.PoolName, other.Count = goldenMember, "attic", 1
	f.add("/dev/x", other)
	f.add("/dev/a", member(0))
	f.add("/dev/c", member(2))
	got := f.finish()
	if len(got) != 2 || got[0].Name != "attic" || len(got[0].Problems) != 0 {
		t.Fatalf("got %+v", got)
	}
	p := got[1]
	if !slices.Equal(p.Disks, []string{"/dev/b", "/dev/a", "/dev/c"}) || !slices.Equal(p.Missing, []int{1}) || p.Members != 3 {
		t.Errorf("got %+v", p)
	}
	text := strings.Join(p.Problems, "; ")
	if !strings.Contains(text, "/dev/b and /dev/c both are member 2") || p.MissingText() != "member 1 of 3 is missing" {
		t.Errorf("problems: %s", text)
	}
}

// TestFinderUnfinished: a crash while a pool was made or deleted leaves a pool
// when one label is in use, else nothing.
func TestFinderUnfinished(t *testing.T) {
	for used := range 3 {
		var f finder
		for i := range 2 {
			l := goldenLabel()
			l.Index, l.Count, l.Unfinished = i, 2, i >= used
			f.add(string(rune('a'+i)), l)
		}
		got := f.finish()
		if want := min(used, 1); len(got) != want || want == 1 && len(got[0].Problems) > 0 {
			t.Errorf("%d of 2 labels in use: %+v", used, got)
		}
	}
}
