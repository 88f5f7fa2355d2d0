package main

import (
	"fmt"
	"math"
	"math/big"
	"strings"

	"github.com/spf13/pflag"
)

// units are the powers of 1024 in their order, bytes first.
const units = "BKMGTPE"

// parseSize reads a number of bytes: digits, perhaps a fraction, perhaps a
// binary unit (K, M, G, T, P, E, each also as KiB and so on; case does not
// matter). The result must be a whole number of bytes. "MB" is refused: half of
// the world means 1000000 by it.
func parseSize(s string) (int64, error) {
	text := strings.ToUpper(strings.TrimSpace(s))
	number := strings.TrimRight(text, "KMGTPEIB ")
	unit := strings.TrimSpace(text[len(number):])
	shift, err := unitShift(unit)
	if err != nil {
		return 0, fmt.Errorf("size %q: %w", s, err)
	}
	if number == "" || strings.Trim(number, "0123456789.") != "" || strings.Count(number, ".") > 1 || number == "." {
		return 0, fmt.Errorf("size %q: want a number with a binary unit, such as 4096, 64K, 4MiB or 1.5G", s)
	}
	if len(number) > 40 {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("size %q: %q is not a number", s, number)
	}
	r.Mul(r, new(big.Rat).SetInt64(1<<shift))
	if !r.IsInt() {
		// 1.1G is no whole number of bytes, and nobody means a half byte:
		// the next sector boundary is close enough.
		n := new(big.Int).Quo(r.Num(), r.Denom())
		n.Add(n, big.NewInt(511)).Rsh(n, 9).Lsh(n, 9)
		r.SetInt(n)
	}
	if !r.Num().IsInt64() {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return r.Num().Int64(), nil
}

func unitShift(unit string) (uint, error) {
	if unit == "" || unit == "B" {
		return 0, nil
	}
	i := strings.Index(units, unit[:1])
	switch {
	case i > 0 && (len(unit) == 1 || unit[1:] == "IB"):
		return uint(10 * i), nil
	case i > 0 && unit[1:] == "B":
		return 0, fmt.Errorf("write %[1]c or %[1]ciB for the binary unit; %[1]cB is ambiguous", unit[0])
	}
	return 0, fmt.Errorf("unit %q is not one of K, M, G, T, P, E", unit)
}

// formatSize writes a number of bytes for people: "4 MiB", "1.5 GiB".
func formatSize(n int64) string {
	if n < 0 {
		return fmt.Sprintf("-%s", formatSize(-max(n, -math.MaxInt64)))
	}
	i, v := 0, float64(n)
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	if v == math.Trunc(v) || v >= 100 {
		return fmt.Sprintf("%.0f %ciB", v, units[i])
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

// sizeFlag is a flag whose value is a size.
type sizeFlag int64

var _ pflag.Value = (*sizeFlag)(nil)

func (f *sizeFlag) Set(s string) error {
	n, err := parseSize(s)
	if err != nil {
		return err
	}
	*f = sizeFlag(n)
	return nil
}

func (f *sizeFlag) String() string {
	if *f == 0 {
		return ""
	}
	return strings.ReplaceAll(formatSize(int64(*f)), " ", "")
}

func (f *sizeFlag) Type() string { return "SIZE" }
