// Extentmap draws which extents of a pool's disks belong to which volume, from
// what "swapback pool show --json" and "swapback volume list --json" printed.
//
//	extentmap pool.json volumes.json
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/swapback/swapback/api"
)

// width is how many cells a disk is drawn with.
const width = 64

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Getenv("COLOR") != ""); err != nil {
		fmt.Fprintln(os.Stderr, "extentmap:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer, color bool) error {
	if len(args) != 2 {
		return fmt.Errorf("want two files: pool.json volumes.json")
	}
	var pool api.Pool
	var volumes []api.Volume
	if err := load(args[0], &pool); err != nil {
		return err
	}
	if err := load(args[1], &volumes); err != nil {
		return err
	}
	_, err := io.WriteString(out, draw(pool, volumes, color))
	return err
}

func load(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// draw returns a line per disk, a cell for a run of extents, a letter for the
// volume that has most of a cell, and a legend.
func draw(pool api.Pool, volumes []api.Volume, color bool) string {
	slices.SortFunc(volumes, func(a, b api.Volume) int { return strings.Compare(a.Name, b.Name) })
	// The part of the disks that is in use is what there is to see.
	used := int64(1)
	for _, v := range volumes {
		eachRun(v, func(_ int, start, n int64) { used = max(used, start+n) })
	}
	per := (used + width - 1) / width
	cells := map[int][]int{} // member → volume index per cell, -1 free
	for _, m := range pool.Members {
		cells[m.Index] = slices.Repeat([]int{-1}, int((min(used, m.Extents)+per-1)/per))
	}
	for i, v := range volumes {
		eachRun(v, func(member int, start, n int64) {
			for e := start; e < start+n; e++ {
				cells[member][e/per] = i
			}
		})
	}
	var b strings.Builder
	for _, m := range pool.Members {
		fmt.Fprintf(&b, "  %-14s ", m.Path)
		for _, i := range cells[m.Index] {
			b.WriteString(cell(i, color))
		}
		b.WriteString("\n")
	}
	for i, v := range volumes {
		state := v.Device
		if v.Position.Quarantine != nil {
			state += " quarantine: " + v.Position.Quarantine.Reason
		}
		fmt.Fprintf(&b, "  %s %-14s position %.8s generation %d  %s\n", cell(i, color), v.Name, v.Position.ID, v.Position.Generation, state)
	}
	fmt.Fprintf(&b, "  one cell is %d extents of %d MiB; the free rest of the disks is not drawn\n", per, pool.ExtentSize>>20)
	return b.String()
}

// eachRun calls f with every run of extents of a volume.
func eachRun(v api.Volume, f func(member int, start, n int64)) {
	for _, s := range v.Position.Segments {
		for _, st := range s.Stripes {
			f(st.Member, st.Start, s.Extents)
		}
	}
}

func cell(volume int, color bool) string {
	if volume < 0 {
		return "·"
	}
	letter := string(rune('A' + volume%26))
	if !color {
		return letter
	}
	return fmt.Sprintf("\x1b[7;%dm%s\x1b[0m", 31+volume%6, letter)
}
