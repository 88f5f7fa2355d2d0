package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestSectionsOfShortJobFile(t *testing.T) {
	rows, err := sections("short.fio")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"randread-4k-qd1", "randread-4k-qd32", "randwrite-4k-qd32", "read-128k-qd8"}
	if !slices.Equal(rows, want) {
		t.Errorf("rows %q, want %q", rows, want)
	}
	empty := filepath.Join(t.TempDir(), "empty.fio")
	if err := os.WriteFile(empty, []byte("[global]\nbs=4k\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sections(empty); err == nil {
		t.Error("a job file without rows was accepted")
	}
}

func TestParseFio(t *testing.T) {
	r, ios, err := parseFio([]byte(`{"jobs":[{"error":0,
		"read":{"iops":1000,"bw_bytes":4096000,"total_ios":30,"clat_ns":{"percentile":{"50.000000":2000,"99.000000":9000,"99.900000":10000}}},
		"write":{"iops":500,"bw_bytes":2048000,"total_ios":15}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := result{IOPS: 1500, MBps: 6.144, P50: 2, P99: 9, P999: 10}
	if r != want || ios != 45 {
		t.Errorf("got %+v and %v requests, want %+v and 45", r, ios, want)
	}
	for _, bad := range []string{`{`, `{"jobs":[]}`, `{"jobs":[{"error":5}]}`, `{"jobs":[{"error":0}]}`} {
		if _, _, err := parseFio([]byte(bad)); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func TestMediansTakesTheMiddleOfEachFigure(t *testing.T) {
	m := medians([]result{
		{IOPS: 3, MBps: 1, P50: 9, ServerCPU: 5},
		{IOPS: 1, MBps: 2, P50: 7, ServerCPU: 6},
		{IOPS: 2, MBps: 3, P50: 8, ServerCPU: 4},
	})
	if m.IOPS != 2 || m.MBps != 2 || m.P50 != 8 || m.ServerCPU != 5 || m.Rounds != 3 {
		t.Errorf("medians %+v", m)
	}
}

func FuzzParseFio(f *testing.F) {
	f.Add([]byte(`{"jobs":[{"error":0,"read":{"iops":1,"total_ios":1}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, ios, err := parseFio(text); err == nil && ios == 0 {
			t.Error("no error although no request was made")
		}
	})
}
