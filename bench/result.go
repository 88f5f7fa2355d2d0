package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Modes of measuring; see README.md.
const (
	modeExact = "exact"
	modeWall  = "wall"
)

// result is one row of one subject: medians over the rounds, and how far the
// rounds lay apart. A subject that was not measured has one result, without a
// row, that says why.
type result struct {
	Mode    string  `json:"mode"`
	Subject string  `json:"subject"`
	Row     string  `json:"row"`
	IOPS    float64 `json:"iops"`
	MBps    float64 `json:"mbps"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p999_us"`
	// ServerCPU is what the server and the kernel's workers spent, in seconds
	// per million requests.
	ServerCPU float64 `json:"server_cpu_s_per_mio"`
	IOPSMin   float64 `json:"iops_min"`
	IOPSMax   float64 `json:"iops_max"`
	Rounds    int     `json:"rounds"`
	// Ratios of the IOPS to those of the same row on other subjects of this
	// run; 0 when those were not measured.
	RatioRaw   float64 `json:"ratio_raw"`
	RatioLoop  float64 `json:"ratio_loop"`
	RatioNVMeT float64 `json:"ratio_nvmet,omitempty"` // of an export, to as many queues of the kernel's target
	DataPath   string  `json:"data_path,omitempty"`   // as swapbackd tells it
	Missing    string  `json:"missing,omitempty"`
	versions
}

// versions are those of everything that the figures depend on.
type versions struct {
	Kernel string `json:"kernel"`
	QEMU   string `json:"qemu"` // empty on real hardware
	Fio    string `json:"fio"`
	Go     string `json:"go"`
	Bench  string `json:"swapback"`
}

// sameMachine tells whether figures of two runs can be compared as they are.
// Go and swapback itself are what is measured, not what it is measured with.
func (v versions) sameMachine(o versions) bool {
	return v.Kernel == o.Kernel && v.QEMU == o.QEMU && v.Fio == o.Fio
}

func (v versions) machine() string {
	qemu := "no QEMU"
	if v.QEMU != "" {
		qemu = "QEMU " + v.QEMU
	}
	return fmt.Sprintf("kernel %s, %s, %s", v.Kernel, qemu, v.Fio)
}

// key names what is compared between runs.
type key struct{ Mode, Subject, Row string }

func (r *result) key() key { return key{r.Mode, r.Subject, r.Row} }

func (k key) String() string { return fmt.Sprintf("%s on %s (%s)", k.Row, k.Subject, k.Mode) }

func (r *result) validate() error {
	if r.Mode != modeExact && r.Mode != modeWall {
		return fmt.Errorf("mode %q: want %s or %s", r.Mode, modeExact, modeWall)
	}
	if r.Subject == "" {
		return errors.New("a result without a subject")
	}
	if r.Missing != "" {
		return nil
	}
	if r.Row == "" {
		return fmt.Errorf("subject %s: a result without a row", r.Subject)
	}
	// JSON knows no infinities; a figure of 0 would be one once divided by.
	if r.IOPS <= 0 || r.IOPS > math.MaxInt64 || r.IOPSMin < 0 || r.IOPSMin > r.IOPS || r.IOPSMax < r.IOPS {
		return fmt.Errorf("%v: %v IOPS between %v and %v cannot be", r.key(), r.IOPS, r.IOPSMin, r.IOPSMax)
	}
	return nil
}

func decodeResults(text []byte) ([]result, error) {
	var list []result
	dec := json.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&list); err != nil {
		return nil, err
	}
	seen := map[key]bool{}
	for i := range list {
		if err := list[i].validate(); err != nil {
			return nil, err
		}
		if seen[list[i].key()] {
			return nil, fmt.Errorf("%v is there twice", list[i].key())
		}
		seen[list[i].key()] = true
	}
	return list, nil
}

func readResults(path string) ([]result, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, err := decodeResults(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w (bench run writes such files)", path, err)
	}
	return list, nil
}

// writeJSON writes a file of results, one object per line of the list, so that
// a change of the baseline reads well.
func writeJSON[T any](path string, list []T) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString("[\n")
	for i, r := range list {
		text, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		b.Write(text)
		if i < len(list)-1 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	b.WriteString("]\n")
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// sample is one measurement of one row.
type sample struct {
	iops, mbps, p50, p99, p999, serverCPU float64
}

// summarize takes the median of every figure, and the spread of the IOPS.
func summarize(samples []sample) result {
	middle := func(of func(sample) float64) float64 {
		var values []float64
		for _, s := range samples {
			values = append(values, of(s))
		}
		slices.Sort(values)
		// Of an even number the lower one: a figure that was measured.
		return values[(len(values)-1)/2]
	}
	r := result{
		IOPS:      middle(func(s sample) float64 { return s.iops }),
		MBps:      middle(func(s sample) float64 { return s.mbps }),
		P50:       middle(func(s sample) float64 { return s.p50 }),
		P99:       middle(func(s sample) float64 { return s.p99 }),
		P999:      middle(func(s sample) float64 { return s.p999 }),
		ServerCPU: middle(func(s sample) float64 { return s.serverCPU }),
		Rounds:    len(samples),
	}
	r.IOPSMin, r.IOPSMax = r.IOPS, r.IOPS
	for _, s := range samples {
		r.IOPSMin, r.IOPSMax = min(r.IOPSMin, s.iops), max(r.IOPSMax, s.iops)
	}
	return r
}

// addRatios fills in the ratios to the subjects raw and loop, and to nvmet.
func addRatios(list []result) {
	iops := map[key]float64{}
	for _, r := range list {
		iops[r.key()] = r.IOPS
	}
	for i := range list {
		r := &list[i]
		if base := iops[key{r.Mode, "raw", r.Row}]; base > 0 {
			r.RatioRaw = r.IOPS / base
		}
		if base := iops[key{r.Mode, "loop", r.Row}]; base > 0 {
			r.RatioLoop = r.IOPS / base
		}
		if queues, ok := strings.CutPrefix(r.Subject, "export-"); ok {
			if base := iops[key{r.Mode, "nvmet-" + queues, r.Row}]; base > 0 {
				r.RatioNVMeT = r.IOPS / base
			}
		}
	}
}
