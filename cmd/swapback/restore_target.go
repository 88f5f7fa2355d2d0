package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/dmswap/probe"
	"github.com/swapback/swapback/holders"
)

// to returns the options of a restore to a file or device.
func (o restoreOptions) to(a *app, target string, b backup.Backup, p *progress) backup.RestoreOptions {
	return backup.RestoreOptions{
		Backup: b.ID, Volume: o.volume, Target: target, AllowLarger: o.allowLarger,
		Delta: o.delta, StopAtDamage: o.stopAtDamage, VerifyAfter: o.verify,
		Progress: p.update, Logger: a.logger(),
	}
}

// restoreToFile writes a new file, or one that was said to be written over. The
// flag that says so is all that is asked for.
func (a *app) restoreToFile(ctx context.Context, repo *backup.Repository, b backup.Backup, o restoreOptions, p *progress) (backup.RestoreResult, error) {
	var none backup.RestoreResult
	ro := o.to(a, o.toFile, b, p)
	st, err := os.Stat(o.toFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		ro.CreateTarget = true
	case err != nil:
		return none, fmt.Errorf("restore to file: %w", err)
	case st.Mode()&fs.ModeDevice != 0:
		return none, usagef("%s is a device, not a file", o.toFile).withRemedy("give --to-device " + o.toFile + " if it is to be written over")
	case !o.overwrite && !o.delta:
		return none, &cliError{
			exit: exitFailed, code: api.CodeExists, message: fmt.Sprintf("file %s is there already", o.toFile),
			remedy: "name a new file, or give --overwrite to write over all of it, or --delta to write only what differs",
		}
	}
	return repo.Restore(ctx, ro)
}

// restoreToDevice writes over a block device that is not swapback's.
func (a *app) restoreToDevice(ctx context.Context, repo *backup.Repository, b backup.Backup, o restoreOptions, p *progress) (backup.RestoreResult, error) {
	var none backup.RestoreResult
	loss, err := a.lossOfDevice(ctx, o.toDevice)
	if err != nil {
		return none, err
	}
	if err := a.refuseHolders(ctx, o.toDevice, true); err != nil {
		return none, err
	}
	if err := a.confirm("write backup "+b.ID+" over", []string{loss}, o.yes); err != nil {
		return none, err
	}
	p.start = a.now()
	ro := o.to(a, o.toDevice, b, p)
	// Whoever came meanwhile; the device is claimed by now.
	ro.Ready = func() error { return a.refuseHolders(ctx, o.toDevice, false) }
	return repo.Restore(ctx, ro)
}

// lossOfDevice describes a device to somebody about to lose its content, and refuses
// one that is, or may be, swapback's own.
func (a *app) lossOfDevice(ctx context.Context, path string) (string, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", &cliError{exit: exitNotFound, code: api.CodeNotFound, message: "no device " + path, remedy: "see which there are with: lsblk"}
	case err != nil:
		return "", fmt.Errorf("restore to device: %w", err)
	case st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice:
		return "", usagef("%s is not a block device", path).withRemedy("give --to-file to write a file")
	}
	if err := a.refuseVolume(ctx, st, path); err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("restore to device: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", fmt.Errorf("restore to device: size of %s: %w", path, err)
	}
	found, err := probe.Probe(f, size)
	if err != nil {
		return "", fmt.Errorf("restore to device: look at what %s holds: %w", path, err)
	}
	loss := fmt.Sprintf("device %s, %s", path, formatSize(size))
	for i, what := range found {
		if strings.Contains(what.Name, "swapback pool") {
			return "", &cliError{exit: exitRefused, code: api.CodeInUse,
				message: fmt.Sprintf("%s is %s", path, what), remedy: "delete the pool first, or use another device"}
		}
		loss += []string{", with ", " and "}[min(i, 1)] + what.Name
	}
	return loss, nil
}

// refuseVolume refuses the device of a volume: it is to be written with what the
// daemon knows of it, as by --onto.
func (a *app) refuseVolume(ctx context.Context, st fs.FileInfo, path string) error {
	no := st.Sys().(*syscall.Stat_t).Rdev
	sys, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(no), unix.Minor(no)))
	if err != nil || !strings.Contains(sys, "/ublkb") {
		return nil
	}
	c := a.client()
	defer c.Close()
	list, err := c.Volumes(ctx, "")
	if err != nil {
		return fmt.Errorf("restore to device: is %s a volume's: %w", path, err)
	}
	for _, v := range list {
		if v.Device != "" && strings.Contains(sys+"/", "/"+filepath.Base(v.Device)+"/") {
			return usagef("%s is the device of volume %s/%s", path, v.Pool, v.Name).withRemedy("give --onto " + v.Pool + "/" + v.Name)
		}
	}
	return nil
}

// refuseHolders names everybody who uses the device. probe also tries to claim it,
// for what nobody is seen to hold.
func (a *app) refuseHolders(ctx context.Context, path string, probe bool) error {
	f := holders.Finder{Ignore: []int{os.Getpid()}, Probe: probe}
	found, err := f.Find(ctx, path)
	var unseen *holders.IncompleteError
	if errors.As(err, &unseen) && len(found) == 0 {
		// The kernel refuses the claim for all but those who merely have it open.
		a.logger().Warn("who uses the device is not known for sure", "device", path, "err", unseen)
		return nil
	}
	if err != nil && unseen == nil {
		return fmt.Errorf("restore to device: %w", err)
	}
	if len(found) == 0 {
		return nil
	}
	e := &api.Error{Code: api.CodeInUse, Message: fmt.Sprintf("device %s is in use; nothing was written", path), Remedy: "unmount or stop what is named above"}
	for _, h := range found {
		e.Holders = append(e.Holders, api.Holder{Kind: h.Kind, Device: h.Device, PID: h.PID, Command: h.Command, Detail: h.Detail})
	}
	return e
}
