// Command guest is the init of the test machine. It mounts the host's root
// (read-only, under an overlay in memory), loads modules, runs one shell
// command and tells the host how that ended. It is the only program in the
// initramfs; everything else comes from the host's root.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/ci/internal/guestcfg"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the init of swapback's test machine; it does nothing elsewhere")
		os.Exit(2)
	}
	// A Ctrl-Alt-Del or a stray signal must not end init: the kernel would panic
	// and hide what happened.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)

	var link link
	status, err := run(&link)
	if !writeOut(20 * time.Second) {
		link.say(guestcfg.Note + " a device in the machine hangs: not everything was written to the disks")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "guest: %v\n", err)
		link.say(guestcfg.Fail + " " + oneLine(err.Error()))
	} else {
		link.say(fmt.Sprintf("%s %d", guestcfg.Exit, status))
	}
	// The host ends the machine on either word. Powering off is for the case
	// that it could not be told.
	time.Sleep(5 * time.Second)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// run brings the machine up and runs the command. Its status is 128+N for a
// command that was ended by signal N, as in a shell.
func run(l *link) (int, error) {
	for _, m := range []mount{
		{"devtmpfs", "/dev", "devtmpfs", 0, "mode=0755"},
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""},
	} {
		if err := m.do(); err != nil {
			return 0, err
		}
	}
	data, err := os.ReadFile(guestcfg.File)
	if err != nil {
		return 0, fmt.Errorf("read the configuration: %w", err)
	}
	var cfg guestcfg.Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		return 0, fmt.Errorf("decode %s: %w", guestcfg.File, err)
	}
	if err := loadModules(cfg.Early); err != nil {
		return 0, err
	}
	if err := l.open(10 * time.Second); err != nil {
		return 0, err
	}
	if err := mountRoot(&cfg); err != nil {
		return 0, err
	}
	if err := startProcessors(); err != nil {
		return 0, err
	}
	if err := setAutoprobe("0"); err != nil {
		return 0, err
	}
	if err := loadModules(cfg.Late); err != nil {
		return 0, err
	}
	if err := bindDisks(); err != nil {
		return 0, err
	}
	if err := networkUp(cfg.Address); err != nil {
		return 0, err
	}
	if err := waitForDisks(cfg.Disks, 30*time.Second); err != nil {
		return 0, err
	}
	l.say(guestcfg.Ready)
	return runCommand(&cfg, l)
}

// writeOut writes everything to the disks, unless a device hangs, which a test of
// devices may well bring about.
func writeOut(limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		unix.Sync()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}

// oneLine makes a text fit on the control port, where a line is a message.
func oneLine(s string) string {
	return strings.ReplaceAll(s, "\n", "; ")
}
