package main

import (
	"context"
	"io"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]uint64{"0": 0, "4096": 4096, "512M": 512 << 20, "1G": 1 << 30, "2T": 2 << 40, "3K": 3 << 10} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "M", "1MM", "-1", "1.5G", "9999999T", "12x"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: accepted as %d", text, got)
		}
	}
}

func TestBadArguments(t *testing.T) {
	for _, args := range [][]string{{}, {"file"}, {"disk", "x"}, {"delete", "x"}, {"memory", "x"}, {"file", "/does/not/exist"}} {
		if err := run(context.Background(), args, io.Discard); err == nil || strings.Contains(err.Error(), "nil") {
			t.Errorf("%q: %v", args, err)
		}
	}
}
