package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// fioOutput is what is read of fio's JSON (fio 3, --output-format=json).
type fioOutput struct {
	Jobs []struct {
		Name  string  `json:"jobname"`
		Error int     `json:"error"`
		Read  fioSide `json:"read"`
		Write fioSide `json:"write"`
	} `json:"jobs"`
}

type fioSide struct {
	IOPS     float64 `json:"iops"`
	BWBytes  float64 `json:"bw_bytes"`
	TotalIOs float64 `json:"total_ios"`
	Clat     struct {
		Percentile map[string]float64 `json:"percentile"` // ns
	} `json:"clat_ns"`
}

// parseFio returns one row's figures and the number of requests behind them.
// Latencies of a mixed row are those of its reads. fio makes one report of a
// row's jobs (group_reporting), so there has to be exactly one.
func parseFio(text []byte) (sample, float64, error) {
	var out fioOutput
	// Warnings come before the report.
	if i := bytes.IndexByte(text, '{'); i > 0 {
		text = text[i:]
	}
	if err := json.Unmarshal(text, &out); err != nil {
		return sample{}, 0, fmt.Errorf("fio's output: %w", err)
	}
	if len(out.Jobs) != 1 {
		return sample{}, 0, fmt.Errorf("fio reported %d jobs, want 1 (group_reporting)", len(out.Jobs))
	}
	job := out.Jobs[0]
	if job.Error != 0 {
		return sample{}, 0, fmt.Errorf("fio reports errno %d", job.Error)
	}
	side := job.Read
	if side.TotalIOs == 0 {
		side = job.Write
	}
	ios := job.Read.TotalIOs + job.Write.TotalIOs
	iops := job.Read.IOPS + job.Write.IOPS
	if ios <= 0 || iops <= 0 {
		return sample{}, 0, errors.New("fio made no requests")
	}
	return sample{
		iops: iops,
		mbps: (job.Read.BWBytes + job.Write.BWBytes) / 1e6,
		p50:  side.Clat.Percentile["50.000000"] / 1e3,
		p99:  side.Clat.Percentile["99.000000"] / 1e3,
		p999: side.Clat.Percentile["99.900000"] / 1e3,
	}, ios, nil
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

// fio runs rows of job files.
type fio struct {
	program string
	// cpus is where fio may run, as taskset(1) takes it; empty for anywhere.
	cpus          string
	runtime, ramp string // for rows that are bounded by time
}

// startupHung is what fio says when its jobs do not come up within five seconds,
// which happens on an emulated machine whose host is busy. It has done nothing
// by then and is started again. It also signals its whole process group then,
// so it gets one of its own.
const startupHung = "job startup hung"

// run runs one section of a job file on a device and returns fio's JSON. More
// arguments go to fio before the file.
func (f *fio) run(ctx context.Context, file, section, device string, more ...string) ([]byte, error) {
	args := []string{f.program, "--output-format=json", "--section=" + section}
	args = append(append(args, more...), file)
	if f.cpus != "" {
		args = append([]string{"taskset", "-c", f.cpus}, args...)
	}
	for try := 1; ; try++ {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "DEVICE="+device, "RUNTIME="+f.runtime, "RAMP="+f.ramp)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err == nil {
			return out, nil
		}
		if try < 4 && ctx.Err() == nil && bytes.Contains(append(out, stderr.Bytes()...), []byte(startupHung)) {
			fmt.Fprintln(os.Stderr, "bench: this machine was too busy to start fio; once more")
			continue
		}
		return nil, fmt.Errorf("fio, section %s of %s, on %s: %w\n%s%s", section, file, device, err, out, stderr.Bytes())
	}
}
