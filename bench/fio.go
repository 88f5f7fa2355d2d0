package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/prometheus/procfs"
)

// fioOutput is what is read of fio's JSON (fio 3, --output-format=json).
type fioOutput struct {
	Jobs []struct {
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
// Latencies of a mixed row are those of its reads.
func parseFio(text []byte) (result, float64, error) {
	var out fioOutput
	if err := json.Unmarshal(text, &out); err != nil {
		return result{}, 0, fmt.Errorf("fio's output: %w", err)
	}
	if len(out.Jobs) != 1 {
		return result{}, 0, fmt.Errorf("fio reported %d jobs, want 1", len(out.Jobs))
	}
	job := out.Jobs[0]
	if job.Error != 0 {
		return result{}, 0, fmt.Errorf("fio reports errno %d", job.Error)
	}
	side := job.Read
	if side.TotalIOs == 0 {
		side = job.Write
	}
	ios := job.Read.TotalIOs + job.Write.TotalIOs
	if ios == 0 {
		return result{}, 0, errors.New("fio made no requests")
	}
	return result{
		IOPS: job.Read.IOPS + job.Write.IOPS,
		MBps: (job.Read.BWBytes + job.Write.BWBytes) / 1e6,
		P50:  side.Clat.Percentile["50.000000"] / 1e3,
		P99:  side.Clat.Percentile["99.000000"] / 1e3,
		P999: side.Clat.Percentile["99.900000"] / 1e3,
	}, ios, nil
}

// cpuSeconds returns the user and system time of a process, 0 for pid 0.
func cpuSeconds(pid int) (float64, error) {
	if pid == 0 {
		return 0, nil
	}
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0, fmt.Errorf("server process: %w", err)
	}
	stat, err := p.Stat()
	if err != nil {
		return 0, fmt.Errorf("server process: %w", err)
	}
	return stat.CPUTime(), nil
}
