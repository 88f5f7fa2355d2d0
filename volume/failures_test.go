package volume

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/ublk"
)

// testFailureLog has a volume that lies on two disks, in turn.
func testFailureLog() (l *failureLog, c *Controller, out *bytes.Buffer, clock *time.Time) {
	out, clock = &bytes.Buffer{}, new(time.Time)
	*clock = time.Unix(1000, 0)
	c = &Controller{metrics: newMetrics("v1")}
	return &failureLog{
		log: slog.New(slog.NewTextHandler(out, nil)), metrics: c.metrics, pool: "tank", volume: "tank/db",
		now:  func() time.Time { return *clock },
		size: func(string) (int64, error) { return 1 << 30, nil },
		locate: func(f ublk.Failure) (list []dmswap.DiskRange) {
			for at := f.Offset; at < f.Offset+f.Length; at += 4096 {
				list = append(list, dmswap.DiskRange{Disk: fmt.Sprintf("/dev/disk%d", at/4096%2), Offset: int64(at) + 1<<20, Length: 4096})
			}
			return list
		},
	}, c, out, clock
}

func TestFailuresNameDiskAndSector(t *testing.T) {
	l, c, out, _ := testFailureLog()
	l.heard(ublk.Failure{Op: ublk.OpWrite, Offset: 8192, Length: 8192, Errno: unix.EIO}, 0)
	for _, want := range []string{
		"level=ERROR", `msg="I/O error"`, "volume=tank/db", "op=write", "offset=8192", "length=8192", `err="input/output error"`,
		`disk="/dev/disk0 sectors 2064+8, /dev/disk1 sectors 2072+8"`,
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the log: %s", want, out)
		}
	}
	l.heard(ublk.Failure{Op: ublk.OpRead, Offset: 4096, Length: 512, Errno: unix.EIO, Short: true}, 0)
	if !strings.Contains(out.String(), "shorter") {
		t.Errorf("a short backend is not named: %s", out)
	}
	if strings.Count(out.String(), "why=") != 1 {
		t.Errorf("the error of a sector is explained: %s", out)
	}
	l.heard(ublk.Failure{Op: ublk.OpRead, Length: 1 << 20, Errno: unix.EIO}, 0)
	if lines := strings.Split(out.String(), "\n"); len(lines[2]) > 400 || !strings.Contains(lines[2], "…") {
		t.Errorf("a request in many pieces makes a line of %d bytes", len(lines[2]))
	}
	wantLines(t, scrape(t, c), map[string]string{
		`swapback_disk_errors_total{disk="/dev/disk0",op="write",pool="tank"}`: "1",
		`swapback_disk_errors_total{disk="/dev/disk1",op="write",pool="tank"}`: "1",
		`swapback_disk_errors_total{disk="/dev/disk0",op="read",pool="tank"}`:  "1",
		`swapback_disk_errors_total{disk="/dev/disk1",op="read",pool="tank"}`:  "2",
	})
}

// TestFailuresOfAShorterDisk: the disk that ends before the request does is named.
func TestFailuresOfAShorterDisk(t *testing.T) {
	l, _, out, _ := testFailureLog()
	l.size = func(disk string) (int64, error) {
		if disk == "/dev/disk1" {
			return 1<<20 + 8192, nil
		}
		return 0, unix.ENOENT
	}
	l.heard(ublk.Failure{Op: ublk.OpRead, Offset: 4096, Length: 8192, Errno: unix.EIO}, 0)
	if strings.Contains(out.String(), "why=") {
		t.Errorf("what ends where the disk does is called too long: %s", out)
	}
	l.heard(ublk.Failure{Op: ublk.OpRead, Offset: 8192, Length: 8192, Errno: unix.EIO}, 0)
	if want := `why="/dev/disk1 has become shorter, it ends at sector 2064"`; !strings.Contains(out.String(), want) {
		t.Errorf("%q is not in the log: %s", want, out)
	}
}

// TestFailuresDoNotFloodTheLog: ten in ten seconds, and none is forgotten.
func TestFailuresDoNotFloodTheLog(t *testing.T) {
	l, c, out, clock := testFailureLog()
	for range 1000 {
		l.heard(ublk.Failure{Op: ublk.OpRead, Length: 4096, Errno: unix.EIO}, 0)
	}
	l.heard(ublk.Failure{Op: ublk.OpRead, Length: 4096, Errno: unix.EIO}, 7)
	if n := strings.Count(out.String(), "\n"); n != failuresLogged {
		t.Errorf("%d lines, want %d", n, failuresLogged)
	}
	*clock = clock.Add(failuresWhile + 1)
	out.Reset()
	l.heard(ublk.Failure{Op: ublk.OpRead, Length: 4096, Errno: unix.EIO}, 0)
	if want := fmt.Sprintf("not_logged=%d", 1000-failuresLogged+1+7); strings.Count(out.String(), "\n") != 1 || !strings.Contains(out.String(), want) {
		t.Errorf("want one line with %s: %s", want, out)
	}
	wantLines(t, scrape(t, c), map[string]string{`swapback_disk_errors_total{disk="/dev/disk0",op="read",pool="tank"}`: "1002"})
}
