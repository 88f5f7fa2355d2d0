package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/swapback/swapback/volume"
)

// coherentArg makes the program check block devices, and do nothing else. It is
// no flag, because it is nobody's but the daemon's.
const coherentArg = "check-coherent"

// checkInChild has devices checked by another process, which may be left waiting
// for a device when this one is killed; see [volume.Options.CheckCoherent].
func checkInChild(ctx context.Context, devices []string) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{coherentArg}, devices...)...)
	cmd.Env = []string{"GOMAXPROCS=1"}
	out, err := cmd.CombinedOutput()
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
