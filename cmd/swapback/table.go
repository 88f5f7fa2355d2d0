package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// table collects rows and writes them in columns.
type table struct{ rows [][]string }

func newTable(header ...string) *table { return &table{rows: [][]string{header}} }

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// write prints the table; an empty cell becomes a dash, so that columns can be
// told apart by eye and by awk.
func (t *table) write(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range t.rows {
		for i, cell := range row {
			if cell == "" {
				cell = "-"
			}
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, cell)
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}

// fields writes "Name: value" lines with the values aligned. Empty values are
// left out.
type fields [][2]string

func (f *fields) add(name, format string, args ...any) {
	*f = append(*f, [2]string{name, fmt.Sprintf(format, args...)})
}

func (f fields) write(w io.Writer) {
	width := 0
	for _, kv := range f {
		if kv[1] != "" {
			width = max(width, len(kv[0]))
		}
	}
	for _, kv := range f {
		if kv[1] != "" {
			fmt.Fprintf(w, "%s:%s %s\n", kv[0], strings.Repeat(" ", width-len(kv[0])), kv[1])
		}
	}
}

// plural returns "1 volume" or "2 volumes".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
