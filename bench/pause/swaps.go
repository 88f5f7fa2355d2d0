package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/swapback/swapback/api"
)

const (
	whatLoad      = "swaps under load"
	whatExtents   = "extents in one piece"
	whatFragments = "extents apart"
	whatPairs     = "pairs"

	loadDepth   = 16
	loadExtents = 1024 // 64 MiB
)

// swapsUnderLoad swaps two volumes while fio keeps requests in flight on one.
func swapsUnderLoad(ctx context.Context, d *daemon, o options) (_ []result, err error) {
	list, err := d.volumes(ctx, loadExtents, "a", "b")
	if err != nil {
		return nil, err
	}
	load, err := startFio(list[0].Device)
	if err != nil {
		return nil, err
	}
	if err := d.waitForIO(ctx, "a", 1000); err != nil {
		_, ferr := load.stop()
		return nil, errors.Join(err, ferr)
	}
	s, err := d.swap(ctx, o.swaps, api.SwapPair{A: "a", B: "b"})
	longest, ferr := load.stop()
	if err := errors.Join(err, ferr); err != nil {
		return nil, err
	}
	r := s.result(whatLoad, 1)
	r.FioMax = longest
	return []result{announce(r)}, d.remove(ctx, "a", "b")
}

// waitForIO waits until a volume has answered so many requests.
func (d *daemon) waitForIO(ctx context.Context, name string, count uint64) error {
	for deadline := time.Now().Add(answerTime); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		v, err := d.client.Volume(ctx, name)
		if err != nil {
			return err
		}
		if v.IO != nil && v.IO.Reads+v.IO.Writes >= count {
			return nil
		}
	}
	return errors.New("fio does not get on: there is no load to swap under")
}

// fio is the load: requests of 4 KiB at random places, past the page cache.
type fio struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

func startFio(device string) (*fio, error) {
	f := &fio{}
	f.cmd = exec.Command("fio", "--name=load", "--filename="+device, "--ioengine=io_uring", "--direct=1", "--rw=randrw", "--bs=4k",
		fmt.Sprintf("--iodepth=%d", loadDepth), "--norandommap=1", "--time_based=1", "--runtime=24h", "--output-format=json")
	f.cmd.Stdout, f.cmd.Stderr = &f.out, os.Stderr
	if err := f.cmd.Start(); err != nil {
		return nil, fmt.Errorf("fio: %w (install Debian's package fio)", err)
	}
	return f, nil
}

// stop ends the load and returns its longest latency in microseconds. Any error
// that fio saw is one: a swap that holds I/O must not show.
func (f *fio) stop() (float64, error) {
	if err := f.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return 0, fmt.Errorf("ending fio: %w", err)
	}
	// fio that was interrupted ends with 128 although all is well.
	err := f.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 128) {
		return 0, fmt.Errorf("fio: %w", err)
	}
	text := f.out.Bytes()
	var out struct {
		Jobs []struct {
			Error int `json:"error"`
			Read  struct {
				Lat latency `json:"lat_ns"`
			} `json:"read"`
			Write struct {
				Lat latency `json:"lat_ns"`
			} `json:"write"`
		} `json:"jobs"`
	}
	// What fio says about the signal comes first.
	if i := bytes.IndexByte(text, '{'); i >= 0 {
		text = text[i:]
	}
	if err := json.Unmarshal(text, &out); err != nil {
		return 0, fmt.Errorf("fio's output: %w", err)
	}
	if len(out.Jobs) != 1 || out.Jobs[0].Error != 0 {
		return 0, fmt.Errorf("fio reports %+v", out.Jobs)
	}
	return max(out.Jobs[0].Read.Lat.Max, out.Jobs[0].Write.Lat.Max) / 1e3, nil
}

type latency struct {
	Max float64 `json:"max"`
}
