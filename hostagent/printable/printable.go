// Package printable makes text that others have written fit for a terminal.
// Names of processes, labels of failed data, comments of backups and the output
// of steps may hold sequences that move the cursor, set the title, or make a
// line say something else than it does.
package printable

import (
	"strings"
	"unicode"
)

// Text replaces what is not to be printed. Line ends, tabs and all letters of
// the world stay.
func Text(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case unicode.Is(unicode.Cc, r) || unicode.Is(unicode.Bidi_Control, r):
			return '·'
		}
		return r
	}, s)
}

// Line is [Text] for a name: it stays on its line.
func Line(s string) string {
	return Text(strings.NewReplacer("\n", "·", "\t", "·").Replace(s))
}
