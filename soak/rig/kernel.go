package rig

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// KernelLog reads what the kernel says from the moment at which it was opened.
type KernelLog struct{ fd int }

// OpenKernelLog marks the present end of the kernel's log (/dev/kmsg).
func OpenKernelLog(t *testing.T) *KernelLog {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("/dev/kmsg: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		t.Fatalf("/dev/kmsg: %v", err)
	}
	return &KernelLog{fd}
}

// Lines returns what was logged since the last call. Each read gives one record,
// "priority,sequence,time,flags;text" (Documentation/ABI/testing/dev-kmsg).
func (k *KernelLog) Lines(t *testing.T) []string {
	t.Helper()
	var lines []string
	buf := make([]byte, 8192)
	for {
		n, err := unix.Read(k.fd, buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return lines
		case errors.Is(err, unix.EPIPE): // records were overwritten before they were read
			lines = append(lines, "(records of the kernel's log are lost)")
			continue
		case err != nil:
			t.Fatalf("/dev/kmsg: %v", err)
		}
		head, text, _ := strings.Cut(string(buf[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		if fields := strings.Split(head, ","); len(fields) > 2 && len(fields[2]) > 6 {
			text = fmt.Sprintf("[%s.%s] %s", fields[2][:len(fields[2])-6], fields[2][len(fields[2])-6:], text) // as dmesg does
		}
		lines = append(lines, text)
	}
}

// complaints are what the kernel says when I/O failed or it is in trouble.
var complaints = []string{
	"I/O error", "Buffer I/O", "EXT4-fs error", "EXT4-fs warning", "Aborting journal", "Remounting filesystem",
	"XFS_WANT_CORRUPTED", "Metadata corruption", "metadata I/O", "Shutting down filesystem", "log I/O error",
	"BUG:", "WARNING:", "Oops", "blocked for more than", "soft lockup", "list_del corruption", "refcount_t",
}

// ExpectQuiet fails the test when the kernel has complained since the last call.
func (k *KernelLog) ExpectQuiet(t *testing.T) {
	t.Helper()
	ExpectQuietLines(t, "the kernel", k.Lines(t))
}

// ExpectQuietLines is [KernelLog.ExpectQuiet] for the log of another machine's kernel.
func ExpectQuietLines(t *testing.T, whose string, lines []string) {
	t.Helper()
	for _, line := range lines {
		for _, c := range complaints {
			if strings.Contains(line, c) {
				t.Errorf("%s says: %s", whose, line)
				break
			}
		}
	}
}
