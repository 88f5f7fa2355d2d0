package job

import (
	"fmt"
	"slices"
	"strings"
)

// Mistake is one thing that is wrong with a job file.
type Mistake struct {
	Line   int    `json:"line"` // 0 when it is about the file as a whole
	Column int    `json:"column"`
	Path   string `json:"path"` // "steps[1].timeout"
	Text   string `json:"text"`
}

// Error lists all mistakes of a job file in the order of their lines.
type Error struct {
	File     string
	Mistakes []Mistake
}

// Error has a line for each mistake, as compilers write them.
func (e *Error) Error() string {
	var b strings.Builder
	for i, m := range e.Mistakes {
		if i > 0 {
			b.WriteString("\n")
		}
		b.WriteString(e.File)
		if m.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", m.Line, m.Column)
		}
		b.WriteString(": ")
		if m.Path != "" {
			b.WriteString(m.Path + ": ")
		}
		b.WriteString(m.Text)
	}
	return b.String()
}

func (e *Error) sort() {
	slices.SortStableFunc(e.Mistakes, func(a, b Mistake) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
}
