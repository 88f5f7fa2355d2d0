//go:build vm

package storm

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const blockSize = 4096

// stampBlock is a block that says one thing, all over: one of two halves shows.
func stampBlock(text string) []byte {
	line := text + "\n"
	return []byte(strings.Repeat(line, blockSize/len(line)+1)[:blockSize])
}

// writeStamp writes a stamp to a device, past the page cache and durably. It
// waits as long as the daemon is away, as every writer does.
func writeStamp(device string, off int64, text string) error {
	return withBlock(device, os.O_WRONLY|unix.O_DSYNC, func(f *os.File, buf []byte) error {
		copy(buf, stampBlock(text))
		_, err := f.WriteAt(buf, off)
		return err
	})
}

// readStamp returns the text of the stamp at off.
func readStamp(device string, off int64) (text string, err error) {
	err = withBlock(device, os.O_RDONLY, func(f *os.File, buf []byte) error {
		if _, err := f.ReadAt(buf, off); err != nil {
			return err
		}
		line, _, _ := bytes.Cut(buf, []byte("\n"))
		text = string(line)
		if len(text) > 200 || !bytes.Equal(buf, stampBlock(text)) {
			return fmt.Errorf("%s at byte %d holds no whole stamp: %.200q", device, off, buf)
		}
		return nil
	})
	return text, err
}

// expectStamp fails unless a stamp is there.
func expectStamp(device string, off int64, want string) error {
	got, err := readStamp(device, off)
	if err == nil && got != want {
		err = fmt.Errorf("%s at byte %d holds %q, want %q", device, off, got, want)
	}
	return err
}

func withBlock(device string, flags int, do func(*os.File, []byte) error) error {
	f, err := os.OpenFile(device, flags|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(buf) }()
	return do(f, buf)
}

// deviceSize is the size that the kernel shows.
func deviceSize(device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, 2)
}
