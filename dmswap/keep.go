package dmswap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// DefaultKeepDir is where old metadata is kept before it is written over.
const DefaultKeepDir = "/var/lib/swapback/metadata"

// keepFile writes a new file that is durable when it returns, and returns its
// path. The name gets the time in front of its ending.
func keepFile(dir, name, ending string, data []byte) (path string, err error) {
	if dir == "" {
		dir = DefaultKeepDir
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("keeping the old metadata: %w", err)
	}
	path = filepath.Join(dir, fmt.Sprintf("%s-%s%s", name, time.Now().UTC().Format("20060102T150405.000000Z"), ending))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", fmt.Errorf("keeping the old metadata: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return "", fmt.Errorf("keeping the old metadata in %s: %w", path, err)
	}
	return path, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
