package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/swapback/swapback/backup"
)

const (
	progressAfter = time.Second     // nothing is drawn for what is done sooner
	progressEvery = 5 * time.Second // between two lines where lines cannot be redrawn
)

// progressEvent is one line of a stream of --json.
type progressEvent struct {
	Type      string  `json:"type"` // "progress"
	Phase     string  `json:"phase"`
	Done      int64   `json:"done"`
	Total     int64   `json:"total"`
	Stored    int64   `json:"stored"`
	Changed   int64   `json:"changed,omitempty"`      // of a backup
	Reused    int64   `json:"deduplicated,omitempty"` // of a backup
	Rate      float64 `json:"rate"`
	Remaining float64 `json:"remaining_seconds,omitempty"`
}

// progress shows how far a long operation has come: as events for programs, as
// one line drawn over itself on a terminal, else as a line every few seconds.
type progress struct {
	a *app

	mu    sync.Mutex
	start time.Time
	last  time.Time
	phase string
	drawn bool // a line stands on the terminal
}

func (a *app) newProgress() *progress { return &progress{a: a, start: a.now()} }

// update takes one report. It may be called from any goroutine.
func (p *progress) update(b backup.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.a.json {
		p.a.event(progressEvent{
			Type: "progress", Phase: b.Phase, Done: b.Done, Total: b.Total,
			Stored: b.Stored, Changed: b.Changed, Reused: b.Reused, Rate: b.Rate, Remaining: b.Remaining.Seconds(),
		})
		return
	}
	now := p.a.now()
	if now.Sub(p.start) < progressAfter {
		return
	}
	if !p.a.errTTY {
		if p.phase == b.Phase && now.Sub(p.last) < progressEvery {
			return
		}
		fmt.Fprintln(p.a.errOut, progressLine(b))
	} else {
		if p.drawn && p.phase != b.Phase {
			fmt.Fprintln(p.a.errOut)
		}
		// What is wider than the terminal is cut, not continued on another line.
		fmt.Fprintf(p.a.errOut, "\r\x1b[K\x1b[?7l%s\x1b[?7h", progressLine(b))
		p.drawn = true
	}
	p.phase, p.last = b.Phase, now
}

// end leaves the terminal at the beginning of an empty line.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn {
		fmt.Fprint(p.a.errOut, "\r\x1b[K")
		p.drawn = false
	}
}

func progressLine(b backup.Progress) string {
	parts := []string{fmt.Sprintf("%-8s", b.Phase)}
	if b.Total > 0 {
		percent := 100 * float64(b.Done) / float64(b.Total)
		parts = append(parts, fmt.Sprintf("%3.0f%%  %s of %s", percent, formatSize(b.Done), formatSize(b.Total)))
	} else {
		parts = append(parts, formatSize(b.Done))
	}
	if b.Rate > 0 {
		parts = append(parts, formatSize(int64(b.Rate))+"/s")
	}
	if b.Remaining > 0 {
		parts = append(parts, formatLeft(b.Remaining)+" left")
	}
	line := strings.Join(parts, "  ")
	if (b.Phase == backup.PhaseBackup || b.Phase == backup.PhaseCopy) && b.Done > 0 {
		line += fmt.Sprintf("; %s changed, %s deduplicated, %s stored", formatSize(b.Changed), formatSize(b.Reused), formatSize(b.Stored))
	}
	return line
}

// formatLeft rounds a time to what anybody can believe of it.
func formatLeft(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Round(time.Second).Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Round(time.Minute).Minutes()))
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}

// event writes one line of a stream.
func (a *app) event(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = a.out.Write(append(b, '\n'))
	return err
}

// wait runs a call of the daemon that tells nothing until it is done, and shows
// the time that it takes.
func (a *app) wait(what string, call func() error) error {
	if a.json || !a.errTTY {
		return call()
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		start := time.Now()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		drawn := false
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(a.errOut, "\r\x1b[K%s: %d s", what, int(time.Since(start).Seconds()))
				drawn = true
			case <-stop:
				if drawn {
					fmt.Fprint(a.errOut, "\r\x1b[K")
				}
				return
			}
		}
	}()
	err := call()
	close(stop)
	<-stopped
	return err
}
