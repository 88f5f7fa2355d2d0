package backup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/swapback/swapback/backup/internal/store/s3test"
)

// memoryEnv says how large the chunks of a "memory" child's repository are.
const memoryEnv = "SWAPBACK_TEST_CHUNK"

// runMemory makes a repository, backs up the image, restores it beside it, and
// prints the most memory that the process ever had, in KiB: all as a program with
// MemoryLimit does it that was asked for as many workers as there may be.
func runMemory() error {
	debug.SetMemoryLimit(MemoryLimit)
	ctx := context.Background()
	var chunk int64
	if _, err := fmt.Sscan(os.Getenv(memoryEnv), &chunk); err != nil {
		return err
	}
	secret := Secret{PassphraseCommand: "echo a passphrase"}
	r, err := Init(ctx, os.Getenv(repoEnv), InitOptions{ChunkSize: chunk, Secret: secret})
	if err != nil {
		return err
	}
	defer r.Close()
	image := os.Getenv(imageEnv)
	for range 2 { // the second one looks everything up
		if _, err := r.Create(ctx, []Source{{Path: image, Volume: VolumeRef{Name: "a"}}}, CreateOptions{Parallel: maxParallel, FullSpeed: true}); err != nil {
			return err
		}
	}
	_, err = r.Restore(ctx, RestoreOptions{Backup: "latest", Target: image + ".back", CreateTarget: true, Parallel: maxParallel})
	if err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if rest, is := strings.CutPrefix(line, "VmHWM:"); is {
			fmt.Println(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		}
	}
	return nil
}

// A process that backs up and restores stays within 512 MiB, whatever the size of
// the chunks and wherever the repository is.
func TestMemory(t *testing.T) {
	long(t)
	const most = 512 << 10
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	content := make([]byte, 256<<20)
	rand.NewChaCha8([32]byte{5}).Read(content)
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	server := s3test.Start(t)
	for name, x := range map[string]struct {
		repo  string
		chunk int64
	}{
		"folder, small chunks":   {filepath.Join(dir, "small"), 64 << 10},
		"folder, default chunks": {filepath.Join(dir, "default"), DefaultChunkSize},
		"folder, large chunks":   {filepath.Join(dir, "large"), 16 << 20},
		"S3, default chunks":     {server.Location(server.Addr, "default"), DefaultChunkSize},
		"S3, large chunks":       {server.Location(server.Addr, "large"), 16 << 20},
	} {
		os.Remove(image + ".back")
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"=memory", repoEnv+"="+x.repo, imageEnv+"="+image, fmt.Sprintf("%s=%d", memoryEnv, x.chunk),
			"AWS_ACCESS_KEY_ID="+s3test.Access, "AWS_SECRET_ACCESS_KEY="+s3test.Secret)
		out, err := cmd.CombinedOutput()
		var kib int64
		if _, serr := fmt.Sscan(string(out), &kib); err != nil || serr != nil {
			t.Fatalf("%s: %v, %v: %s", name, err, serr, out)
		}
		t.Logf("%s: %d MiB", name, kib>>10)
		if kib > most {
			t.Errorf("%s: the process had %d MiB", name, kib>>10)
		}
	}
}
