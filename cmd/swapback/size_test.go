package main

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	tests := []struct {
		in   string
		want int64
	}{
		{"0", 0},
		{"4096", 4096},
		{"4096B", 4096},
		{"4K", 4 << 10},
		{"4k", 4 << 10},
		{"4KiB", 4 << 10},
		{"4 MiB", 4 << 20},
		{" 1G ", 1 << 30},
		{"1.5G", 3 << 29},
		{"0.5k", 512},
		{"2T", 2 << 40},
		{"3P", 3 << 50},
		{"7E", 7 << 60},
		{"1.1G", 1181116416}, // no whole number of bytes: up to the next sector
		{"9223372036854775807", math.MaxInt64},
	}
	for _, tc := range tests {
		got, err := parseSize(tc.in)
		if err != nil || got != tc.want {
			t.Errorf("%q: got %d, %v; want %d", tc.in, got, err, tc.want)
		}
	}
}

func TestParseSizeRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "want a number",
		"G":                       "want a number",
		".":                       "want a number",
		"-1G":                     "want a number",
		"+1G":                     "want a number",
		"1e3":                     "want a number",
		"0x10":                    "want a number",
		"1_000":                   "want a number",
		"1..5G":                   "want a number",
		"4MB":                     "MB is ambiguous",
		"4X":                      "want a number",
		"4iB":                     "not one of",
		"4KM":                     "not one of",
		"4M4":                     "want a number",
		"8E":                      "too large",
		"9223372036854775808":     "too large",
		strings.Repeat("9", 1000): "too large",
	} {
		got, err := parseSize(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: got %d, %v; want an error with %q", in, got, err, want)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0:              "0 B",
		1023:           "1023 B",
		1024:           "1 KiB",
		1536:           "1.5 KiB",
		4 << 20:        "4 MiB",
		3 << 29:        "1.5 GiB",
		1181116006:     "1.1 GiB",
		1 << 60:        "1 EiB",
		-2048:          "-2 KiB",
		math.MaxInt64:  "8 EiB",
		math.MinInt64:  "-8 EiB",
		500<<20 + 1<<9: "500 MiB",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}

// What parses is not negative, and what is shown for it parses again, to nearly
// the same size.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"4M", "1.5GiB", "0.1k", "9223372036854775807", "7.999E", "4 MB", "1e9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseSize(s)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("%q: negative size %d", s, n)
		}
		shown := formatSize(n)
		again, err := parseSize(shown)
		if err != nil {
			if n > math.MaxInt64/100*99 {
				return // "8 EiB" is one more than the largest number
			}
			t.Fatalf("%q is shown as %q, which does not parse: %v", s, shown, err)
		}
		if diff := math.Abs(float64(again) - float64(n)); diff > float64(n)*0.05+512 {
			t.Errorf("%q is %d, shown as %q, which is %d", s, n, shown, again)
		}
	})
}

// Generations that are taken are one for each volume, and those that were given.
func FuzzExpect(f *testing.F) {
	f.Add("a b", "3,4")
	f.Add("a b c d", " 1 ,2,0,18446744073709551615")
	f.Add("a b", "")
	f.Fuzz(func(t *testing.T, volumes, expect string) {
		names := strings.Fields(volumes)
		if len(names)%2 != 0 {
			return // refused before
		}
		pairs, err := pairsOf(names, []string{expect})
		if err != nil {
			return
		}
		var back []string
		for _, p := range pairs {
			back = append(back, fmt.Sprint(p.ExpectA), fmt.Sprint(p.ExpectB))
		}
		if 2*len(pairs) != len(names) || len(back) != strings.Count(expect, ",")+1 {
			t.Errorf("%q with %q are %+v", names, expect, pairs)
		}
	})
}
