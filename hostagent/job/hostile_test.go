package job

import (
	"errors"
	"strings"
	"testing"

	"github.com/swapback/swapback/soak/heap"
)

// A file is refused for what it is, whatever the parser has to go through, within
// bounded memory and with a short error. What the parser takes grows with the
// square of the size, so that a quarter of the largest file tells for all of it.
func TestHostileFiles(t *testing.T) {
	const size = maxFile / 4
	fill := func(open, part, end string) string {
		return open + strings.Repeat(part, (size-len(open)-len(end))/len(part)) + end
	}
	var nested strings.Builder
	for i := 0; nested.Len() < size-1000; i++ {
		nested.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	for name, text := range map[string]string{
		"lists in lists": fill("", "- ", "x"),
		"keys":           fill("", "? ", "x"),
		"maps in maps":   nested.String(),
		"anchors":        fill("a: ", "&a ", "x"),
		"tags":           fill("a: ", "!a ", "x"),
		"aliases":        fill("a: &a [x]\nb: [", "*a,", "*a]"),
		"merges":         fill("a: &a {x: 1}\nb:\n", "  <<: *a\n", ""),
		"quotes":         fill("a: ", `""`, ""),
		"colons":         fill("", "a: ", "x"),
		"many keys":      fill("", "a: b\n", ""),
		"many steps":     fill("steps:\n", "- {}\n", ""),
		"documents":      fill("", "---\n", ""),
		"long key":       fill("", "a", ": b"),
		"long line":      fill("a: ", "b", ""),
		"literals":       fill("a: |\n", " b\n", ""),
		"comments":       fill("", "#\n", ""),
		"percents":       fill("", "%\n", ""),
		"flow":           fill("a: ", "{}", ""),
		"closing":        fill("a: ", "]", ""),
		"tabs":           fill("a:", "\t", "b"),
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			top := heap.Peak(func() { _, err = Parse("f", []byte(text)) })
			t.Logf("%d bytes: at most %d MiB on the heap: %.200v", len(text), top>>20, err)
			// Measured: at most 45 MiB; and 152 MiB for a file of the largest size.
			if top > 128<<20 {
				t.Errorf("%d MiB lay on the heap", top>>20)
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("error is %v", err)
			}
			if n := len(err.Error()); n > maxMistakes*300 {
				t.Errorf("the error has %d bytes", n)
			}
		})
	}
}
