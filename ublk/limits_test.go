package ublk

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeSysfs lays out a disk with one partition, as /sys/devices has them.
func fakeSysfs(t *testing.T, queue map[string]string) (disk, part string) {
	t.Helper()
	disk = filepath.Join(t.TempDir(), "sda")
	part = filepath.Join(disk, "sda1")
	write := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range queue {
		write(filepath.Join(disk, "queue", name), text)
	}
	write(filepath.Join(disk, "discard_alignment"), "0")
	write(filepath.Join(disk, "ro"), "0")
	write(filepath.Join(part, "discard_alignment"), "512")
	write(filepath.Join(part, "ro"), "1")
	return disk, part
}

var diskQueue = map[string]string{
	"logical_block_size": "512", "physical_block_size": "4096", "minimum_io_size": "4096", "optimal_io_size": "131072",
	"rotational": "0", "write_cache": "write back", "discard_max_bytes": "2147483136", "discard_granularity": "4096",
	"write_zeroes_max_bytes": "131072", "dma_alignment": "3", "virt_boundary_mask": "4095", "max_segments": "127",
	"max_segment_size": "4294967295", "max_sectors_kb": "128",
}

func TestSysfsLimits(t *testing.T) {
	disk, part := fakeSysfs(t, diskQueue)
	want := Limits{
		LogicalBlockSize: 512, PhysicalBlockSize: 4096, MinIOSize: 4096, OptimalIOSize: 131072, VolatileCache: true,
		MaxDiscard: 2147483136, DiscardGranularity: 4096, MaxWriteZeroes: 131072,
		DMAAlignment: 3, VirtBoundary: 4095, MaxSegments: 127, MaxSegmentSize: math.MaxUint32, MaxIOSize: 128 << 10,
	}
	got, err := sysfsLimits(disk)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("disk (-want +got):\n%s", d)
	}
	want.DiscardAlignment, want.ReadOnly = 512, true
	if got, err = sysfsLimits(part); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("partition (-want +got):\n%s", d)
	}
}

func TestSysfsLimitsNameTheBadFile(t *testing.T) {
	bad := map[string]string{}
	for k, v := range diskQueue {
		bad[k] = v
	}
	bad["discard_max_bytes"] = "lots"
	disk, _ := fakeSysfs(t, bad)
	if _, err := sysfsLimits(disk); err == nil || !strings.Contains(err.Error(), "discard_max_bytes") {
		t.Errorf("error %v does not name the file", err)
	}
	delete(bad, "discard_max_bytes")
	disk, _ = fakeSysfs(t, bad)
	if _, err := sysfsLimits(disk); err == nil || !strings.Contains(err.Error(), "discard_max_bytes") {
		t.Errorf("error %v does not name the missing file", err)
	}
}

func TestLimitsValidate(t *testing.T) {
	good := Limits{Size: 1 << 20, LogicalBlockSize: 512, PhysicalBlockSize: 4096}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Limits){
		"size 0":                     func(l *Limits) { l.Size = 0 },
		"size no multiple":           func(l *Limits) { l.LogicalBlockSize = 4096; l.Size = 512 },
		"block size 0":               func(l *Limits) { l.LogicalBlockSize = 0 },
		"block size 256":             func(l *Limits) { l.LogicalBlockSize = 256 },
		"block size no power of two": func(l *Limits) { l.LogicalBlockSize = 1536 },
		"boundary inside a block":    func(l *Limits) { l.Boundary = 1000 },
		"boundary too far":           func(l *Limits) { l.Boundary = 1 << 42 },
		"physical below logical":     func(l *Limits) { l.LogicalBlockSize = 4096; l.PhysicalBlockSize = 512 },
	} {
		l := good
		change(&l)
		if l.validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOpenBackendFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if _, err := OpenBackend(path); err == nil {
		t.Error("a missing file was opened")
	}
	if _, err := OpenBackend(filepath.Dir(path)); err == nil {
		t.Error("a folder was opened")
	}
	if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBackend(path); err == nil || !strings.Contains(err.Error(), "truncate") {
		t.Errorf("a file of 100 bytes: %v, want an error with a remedy", err)
	}
	if err := os.Truncate(path, 1<<20+100); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBackend(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got := b.Limits(); got.Size != 1<<20 || !got.VolatileCache || got.ReadOnly || got.LogicalBlockSize != 512 {
		t.Errorf("limits %+v", got)
	}
}

func TestOptions(t *testing.T) {
	if err := (Options{}).withDefaults().validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	for name, o := range map[string]Options{
		"id":       {ID: -2},
		"queues":   {Queues: 5000},
		"negative": {Queues: -1},
		"depth":    {Depth: 4097},
		"io size":  {MaxIOBytes: 100 << 10},
		"io small": {MaxIOBytes: 2048},
		"io large": {MaxIOBytes: 64 << 20},
	} {
		if o.withDefaults().validate() == nil {
			t.Errorf("%s: %+v accepted", name, o)
		}
	}
}

func TestListIDs(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"ublkc10", "ublkc2", "ublkb3", "ublkcx"} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got, err := listIDs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]int{2, 10}, got); d != "" {
		t.Error(d)
	}
	if _, err := listIDs(filepath.Join(dir, "none")); err != ErrNoDriver {
		t.Errorf("no class: %v, want ErrNoDriver", err)
	}
}

func TestLimitsForBoth(t *testing.T) {
	none := Limits{Size: 1 << 20, LogicalBlockSize: 512, PhysicalBlockSize: 512, MaxDiscard: 1 << 40, MaxSegments: 128}
	disk := Limits{
		Size: 1 << 30, LogicalBlockSize: 4096, PhysicalBlockSize: 4096, VolatileCache: true, MaxDiscard: 1 << 20, DiscardGranularity: 4096,
		DMAAlignment: 3, VirtBoundary: 4095, MaxSegments: 33, MaxSegmentSize: 65536, MaxIOSize: 1 << 17, ReadOnly: true,
	}
	want := disk
	want.Size, want.ReadOnly = none.Size, false
	if got := none.both(disk); got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	want.MaxWriteZeroes = 0
	disk.MaxWriteZeroes = 1 << 20
	if got := none.both(disk); got != want {
		t.Errorf("zeroes: got %+v\nwant %+v", got, want)
	}
}
