package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/swapback/swapback/volume"
)

// What makes the program do something with block devices, and nothing else. They
// are no flags, because they are nobody's but the daemon's.
const (
	coherentArg  = "check-coherent"
	writeBackArg = "write-back"
)

// checkInChild has devices checked by another process, which may be left waiting
// for a device when this one is killed; see [volume.Options.CheckCoherent].
func checkInChild(ctx context.Context, devices []string) error {
	out, err := runChild(ctx, coherentArg, devices)
	if err != nil {
		return fmt.Errorf("%s (%w)", bytes.TrimSpace(out), err)
	}
	return nil
}

// coherentMain is the life of the other process. It returns the exit code.
func coherentMain(devices []string) int {
	if err := volume.CheckAllCoherent(context.Background(), devices); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	return 0
}

// writeBackInChild is for [volume.Options.WriteBack].
func writeBackInChild(ctx context.Context, devices []string) (lost []error, err error) {
	out, err := runChild(ctx, writeBackArg, devices)
	if err != nil {
		return nil, fmt.Errorf("%s (%w)", bytes.TrimSpace(out), err)
	}
	var texts []string
	if err := json.Unmarshal(out, &texts); err != nil || len(texts) != len(devices) {
		return nil, fmt.Errorf("write-back: an answer that can't be read: %q", out)
	}
	lost = make([]error, len(devices))
	for i, text := range texts {
		if text != "" {
			lost[i] = errors.New(text)
		}
	}
	return lost, nil
}

// writeBackMain answers with a text for each device, empty when nothing is lost.
func writeBackMain(devices []string) int {
	lost, err := volume.WriteBack(context.Background(), devices)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	texts := make([]string, len(devices))
	for i, err := range lost {
		if err != nil {
			texts[i] = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	return 0
}

// runChild runs this program once more and returns what it printed. When ctx ends
// before, the child is killed and left to itself: it may be waiting in the kernel
// for one of this process's devices, where a kill does not reach it.
func runChild(ctx context.Context, arg string, devices []string) ([]byte, error) {
	cmd := exec.Command("/proc/self/exe", append([]string{arg}, devices...)...)
	cmd.Env = []string{"GOMAXPROCS=1"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return out.Bytes(), err
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		return nil, context.Cause(ctx)
	}
}
