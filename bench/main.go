// Bench runs fio on block devices in alternating order and reports medians and
// ratios to the first subject. It runs as root where the devices are; see
// bench/run.sh for how the devices come about.
//
//	bench -out build/bench/result.json raw=/dev/dm-3 volume=/dev/ublkb0
//
// Absolute figures of an emulated machine mean nothing: read the ratios.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// result is one row of one subject, the medians over all rounds.
type result struct {
	Mode    string  `json:"mode"`
	Subject string  `json:"subject"`
	Row     string  `json:"row"`
	IOPS    float64 `json:"iops"`
	MBps    float64 `json:"mbps"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p999_us"`
	// ServerCPU is what the server spent, in seconds per million requests.
	ServerCPU float64 `json:"server_cpu_s_per_mio"`
	Ratio     float64 `json:"ratio"` // IOPS to those of the first subject
	Rounds    int     `json:"rounds"`
	Kernel    string  `json:"kernel"`
	Fio       string  `json:"fio"`
	QEMU      string  `json:"qemu"`
}

type subject struct{ name, device string }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	jobs := flags.String("jobs", "bench/short.fio", "fio job file; each section but [global] is a row")
	out := flags.String("out", "build/bench/result.json", "where the result goes")
	rounds := flags.Int("rounds", 3, "how often each row is measured on each subject")
	pid := flags.Int("server-pid", 0, "process whose CPU time is the server's")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var subjects []subject
	for _, a := range flags.Args() {
		name, device, ok := strings.Cut(a, "=")
		if !ok {
			return fmt.Errorf("subject %q: want NAME=DEVICE", a)
		}
		subjects = append(subjects, subject{name, device})
	}
	if len(subjects) == 0 || *rounds < 1 {
		return errors.New("want at least one subject NAME=DEVICE and one round")
	}
	rows, err := sections(*jobs)
	if err != nil {
		return err
	}
	b := &bench{jobs: *jobs, pid: *pid}
	if err := b.versions(ctx); err != nil {
		return err
	}
	var results []result
	for _, row := range rows {
		r, err := b.measureRow(ctx, row, subjects, *rounds)
		if err != nil {
			return err
		}
		results = append(results, r...)
	}
	if err := write(*out, results); err != nil {
		return err
	}
	return printTable(results)
}

// sections returns the names of a job file's sections but [global].
func sections(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "["); ok && line != "[global]" {
			list = append(list, strings.TrimSuffix(name, "]"))
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: no rows", path)
	}
	return list, nil
}

type bench struct {
	jobs              string
	pid               int
	kernel, fio, qemu string
}

func (b *bench) versions(ctx context.Context) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	b.kernel = unix.ByteSliceToString(uts.Release[:])
	out, err := exec.CommandContext(ctx, "fio", "--version").Output()
	if err != nil {
		return fmt.Errorf("fio: %w (install Debian's package fio)", err)
	}
	b.fio = strings.TrimSpace(string(out))
	// Only an emulated machine has one; without it the field stays empty.
	if out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output(); err == nil && underQEMU() {
		first, _, _ := strings.Cut(string(out), "\n")
		b.qemu = strings.TrimPrefix(first, "QEMU emulator version ")
	}
	return nil
}

func underQEMU() bool {
	vendor, err := os.ReadFile("/sys/class/dmi/id/sys_vendor")
	return err == nil && strings.Contains(string(vendor), "QEMU")
}

// measureRow measures one row on every subject, in an order that turns round
// with every round: what the machine does meanwhile hits all alike.
func (b *bench) measureRow(ctx context.Context, row string, subjects []subject, rounds int) ([]result, error) {
	samples := make([][]result, len(subjects))
	for round := range rounds {
		for i := range subjects {
			if round%2 == 1 {
				i = len(subjects) - 1 - i
			}
			r, err := b.measure(ctx, row, subjects[i])
			if err != nil {
				return nil, fmt.Errorf("row %s on %s (%s): %w", row, subjects[i].name, subjects[i].device, err)
			}
			samples[i] = append(samples[i], r)
		}
	}
	list := make([]result, len(subjects))
	for i := range subjects {
		list[i] = medians(samples[i])
		list[i].Ratio = list[i].IOPS / list[0].IOPS
	}
	return list, nil
}

func (b *bench) measure(ctx context.Context, row string, s subject) (result, error) {
	before, err := cpuSeconds(b.pid)
	if err != nil {
		return result{}, err
	}
	cmd := exec.CommandContext(ctx, "fio", "--output-format=json", "--section="+row, b.jobs)
	cmd.Env = append(os.Environ(), "DEVICE="+s.device)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return result{}, fmt.Errorf("fio: %w\n%s", err, out)
	}
	after, err := cpuSeconds(b.pid)
	if err != nil {
		return result{}, err
	}
	r, ios, err := parseFio(out)
	if err != nil {
		return result{}, err
	}
	r.Mode, r.Subject, r.Row, r.Rounds = "wall", s.name, row, 1
	r.Kernel, r.Fio, r.QEMU = b.kernel, b.fio, b.qemu
	r.ServerCPU = (after - before) / ios * 1e6
	return r, nil
}

// medians returns the median of every figure of the samples.
func medians(samples []result) result {
	m := samples[0]
	pick := func(of func(*result) *float64) {
		var values []float64
		for i := range samples {
			values = append(values, *of(&samples[i]))
		}
		slices.Sort(values)
		*of(&m) = values[len(values)/2]
	}
	pick(func(r *result) *float64 { return &r.IOPS })
	pick(func(r *result) *float64 { return &r.MBps })
	pick(func(r *result) *float64 { return &r.P50 })
	pick(func(r *result) *float64 { return &r.P99 })
	pick(func(r *result) *float64 { return &r.P999 })
	pick(func(r *result) *float64 { return &r.ServerCPU })
	m.Rounds = len(samples)
	return m
}

func write(path string, results []result) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func printTable(results []result) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "row\tsubject\tIOPS\tMB/s\tp50 µs\tp99 µs\tserver CPU s/Mio\tratio\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%.1f\t%.0f\t%.0f\t%.1f\t%.2f\t\n", r.Row, r.Subject, r.IOPS, r.MBps, r.P50, r.P99, r.ServerCPU, r.Ratio)
	}
	return w.Flush()
}
