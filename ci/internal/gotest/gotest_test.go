package gotest

import (
	"strings"
	"testing"
	"time"
)

func TestFollower(t *testing.T) {
	tests := []struct {
		name, in string
		ok       bool
		counts   Counts
		out      string
	}{
		{
			name: "passing",
			in: "=== RUN   TestA\n=== ATTR  TestA pause 12ms\n    a_test.go:3: hello\n=== RUN   TestA/sub\n=== ATTR  TestA/sub k v w\n" +
				"--- PASS: TestA (0.10s)\n    --- PASS: TestA/sub (0.00s)\nPASS\n",
			ok: true, counts: Counts{Passed: 1},
			out: "  ok    TestA (0.10s)\n        pause 12ms\n        sub k v w\n",
		},
		{
			name: "failing, with its output and that of its subtests",
			in: "=== RUN   TestA\n    a_test.go:3: before\n=== RUN   TestA/sub\n    a_test.go:4: bad\ndirect\n=== NAME  TestA\n" +
				"--- FAIL: TestA (0.00s)\n    --- FAIL: TestA/sub (0.00s)\n=== RUN   TestB\n    quiet\n--- PASS: TestB (0.00s)\nFAIL\n",
			counts: Counts{Passed: 1, Failed: 1},
			out: "  FAIL  TestA (0.00s)\n            a_test.go:3: before\n            a_test.go:4: bad\n        direct\n" +
				"            --- FAIL: TestA/sub (0.00s)\n  ok    TestB (0.00s)\n",
		},
		{
			name: "skipped, with the reason",
			in:   "=== RUN   TestA\n    a_test.go:4: needs 6.16\n--- SKIP: TestA (0.00s)\nPASS\n",
			ok:   true, counts: Counts{Skipped: 1},
			out: "  skip  TestA (0.00s)\n            a_test.go:4: needs 6.16\n",
		},
		{
			name:   "panic",
			in:     "=== RUN   TestA\n--- FAIL: TestA (0.00s)\npanic: x\n\ngoroutine 1\n",
			counts: Counts{Failed: 1},
			out:    "  FAIL  TestA (0.00s)\n        panic: x\n        \n        goroutine 1\n",
		},
		{
			name:   "killed in the middle",
			in:     "=== RUN   TestA\n    on the way\n",
			counts: Counts{Failed: 1},
			out:    "  FAIL  TestA (did not end, after 0.0s)\n            on the way\n",
		},
		{
			name:   "fails outside of any test",
			in:     "=== RUN   TestA\n--- PASS: TestA (0.00s)\nleak found\n",
			counts: Counts{Passed: 1, Failed: 1},
			out:    "  ok    TestA (0.00s)\n  FAIL  outside of any test\n        leak found\n",
		},
		{
			name: "parallel",
			in:   "=== RUN   TestA\n=== PAUSE TestA\n=== RUN   TestB\n--- PASS: TestB (0.00s)\n=== CONT  TestA\n--- PASS: TestA (0.00s)\nPASS\n",
			ok:   true, counts: Counts{Passed: 2},
			out: "  ok    TestB (0.00s)\n  ok    TestA (0.00s)\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			f := NewFollower(&out, false)
			f.now = func() time.Time { return time.Time{} }
			// In pieces, as a pipe would give it.
			for i := 0; i < len(tt.in); i += 7 {
				if _, err := f.Write([]byte(tt.in[i:min(i+7, len(tt.in))])); err != nil {
					t.Fatal(err)
				}
			}
			if got := f.Close(tt.ok); got != tt.counts {
				t.Errorf("counts: got %v, want %v", got, tt.counts)
			}
			if out.String() != tt.out {
				t.Errorf("report:\n%s\nwant:\n%s", out.String(), tt.out)
			}
		})
	}
}
