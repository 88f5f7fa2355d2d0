package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/backup"
)

// reports is a restore of 4 GiB as it goes on, one report every half second.
func reports(p *progress, clock *time.Time, n int) {
	for i := range n {
		p.update(backup.Progress{
			Phase: backup.PhaseRestore, Done: int64(i) << 28, Total: 4 << 30,
			Rate: 512 << 20, Remaining: time.Duration(16-i) * 500 * time.Millisecond,
		})
		*clock = clock.Add(500 * time.Millisecond)
	}
	p.end()
}

func newProgressApp(tty, asJSON bool) (*app, *time.Time, *bytes.Buffer, *bytes.Buffer) {
	clock := instant
	var out, errOut bytes.Buffer
	return &app{out: &out, errOut: &errOut, errTTY: tty, json: asJSON, now: func() time.Time { return clock }}, &clock, &out, &errOut
}

func TestProgressInLines(t *testing.T) {
	a, clock, out, errOut := newProgressApp(false, false)
	reports(a.newProgress(), clock, 16)
	want := "restore    12%  512 MiB of 4 GiB  512 MiB/s  7 s left\n" +
		"restore    75%  3 GiB of 4 GiB  512 MiB/s  2 s left\n"
	if errOut.String() != want {
		t.Errorf("got\n%swant\n%s", errOut, want)
	}
	if out.Len() > 0 {
		t.Errorf("progress among the results: %s", out)
	}
}

func TestProgressOfBackup(t *testing.T) {
	got := progressLine(backup.Progress{Phase: backup.PhaseBackup, Done: 2 << 30, Total: 4 << 30, Rate: 1 << 28,
		Changed: 1 << 30, Reused: 512 << 20, Stored: 300 << 20, Remaining: 8 * time.Second})
	want := "backup     50%  2 GiB of 4 GiB  256 MiB/s  8 s left; 1 GiB changed, 512 MiB deduplicated, 300 MiB stored"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestProgressOnTerminal(t *testing.T) {
	a, clock, _, errOut := newProgressApp(true, false)
	reports(a.newProgress(), clock, 6)
	got := errOut.String()
	if n := strings.Count(got, "\r\x1b[K"); n != 5 { // 4 after the first second, and the end
		t.Errorf("drawn %d times: %q", n, got)
	}
	if strings.Contains(got, "\n") || !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("not drawn over itself, or left standing: %q", got)
	}
}

func TestProgressIsSilentWhenQuick(t *testing.T) {
	for _, tty := range []bool{true, false} {
		a, clock, _, errOut := newProgressApp(tty, false)
		reports(a.newProgress(), clock, 2)
		if errOut.Len() > 0 {
			t.Errorf("terminal %v: %q", tty, errOut)
		}
	}
}

func TestProgressEvents(t *testing.T) {
	a, clock, out, errOut := newProgressApp(false, true)
	reports(a.newProgress(), clock, 3)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || errOut.Len() > 0 {
		t.Fatalf("%d lines, stderr %q", len(lines), errOut)
	}
	var e progressEvent
	if err := json.Unmarshal([]byte(lines[2]), &e); err != nil {
		t.Fatal(err)
	}
	want := progressEvent{Type: "progress", Phase: "restore", Done: 2 << 28, Total: 4 << 30, Rate: 512 << 20, Remaining: 7}
	if e != want {
		t.Errorf("got %+v, want %+v", e, want)
	}
}

func TestFormatLeft(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1400 * time.Millisecond: "1 s",
		59 * time.Second:        "59 s",
		100 * time.Second:       "2 min",
		90 * time.Minute:        "1 h 30 min",
	} {
		if got := formatLeft(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}

func TestNear(t *testing.T) {
	known := []string{"db", "db-spare", "log", "tank/db", "ledger"}
	for name, want := range map[string]string{
		"bd":       "db",
		"DB":       "db",
		"lgo":      "log",
		"ledgre":   "ledger",
		"db-":      "db db-spare",
		"tank/dp":  "tank/db",
		"elephant": "",
		"":         "",
	} {
		got := strings.Join(near(name, known), " ")
		if want != "" && !strings.HasPrefix(got+" ", want+" ") || want == "" && got != "" {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}
