package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/holders"
	"github.com/swapback/swapback/hostagent/mount"
	"github.com/swapback/swapback/ublk"
)

type mountOptions struct {
	device    int
	cache     sizeFlag
	readAhead sizeFlag
}

func newBackupMount(a *app) *cobra.Command {
	o := mountOptions{cache: backup.DefaultImageCache, readAhead: backup.DefaultImageReadAhead}
	cmd := &cobra.Command{
		Use:   "mount BACKUP [VOLUME]",
		Short: "Show a volume of a backup as a block device, at once",
		Long: `Serve a volume of a backup as a read-only block device /dev/ublkbN. It is there
at once: what is read is fetched from the repository then, checked, and kept in
a cache of --cache; what a sequential reader will want next is fetched ahead. A
block that is damaged is an I/O error there and nowhere else.

The command stays until Ctrl-C or SIGTERM, and then removes the device. While
somebody uses it, it names him and waits; a second Ctrl-C removes the device all
the same, and he gets I/O errors. So does everybody when the command is killed.
While it runs, the backup's data is kept, even if the backup is deleted.

The device carries the same UUIDs and labels as the volume. With swapback's udev
rules nothing is mounted or activated by itself. Mount it with

  ext4   mount -o ro,noload /dev/ublkbN DIR
  xfs    mount -o ro,norecovery,nouuid /dev/ublkbN DIR

No journal is replayed on it: what a volume had in its journal only is seen after a
restore. A volume whose filesystem was frozen for the backup lacks nothing. Where
the volume holds partitions, "partx --add /dev/ublkbN" makes them appear. It needs
root and the driver ublk_drv; swapbackd need not run.`,
		Example: `  swapback backup mount latest --repo /backups
  swapback backup mount 20260301T120000 db --device 40
  swapback backup mount latest db --repo s3://bucket/backups --cache 1G --read-ahead 128M`,
		Args:              args(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: a.completeBackups(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBackupMount(cmd.Context(), a, o, args)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.device, "device", -1, "wanted N of /dev/ublkbN (default: the first that is free)")
	f.Var(&o.cache, "cache", "memory for what was read")
	f.Var(&o.readAhead, "read-ahead", "how much is fetched ahead of a sequential reader at most, 0 for nothing")
	return cmd
}

func runBackupMount(ctx context.Context, a *app, o mountOptions, args []string) (err error) {
	if o.device < -1 || o.device >= maxMountNumber {
		return usagef("--device %d: not a number of a device", o.device)
	}
	if o.cache < 0 || o.readAhead < 0 {
		return usagef("--cache and --read-ahead take sizes from 0 on")
	}
	if o.readAhead == 0 {
		o.readAhead = -1 // 0 is the default there
	}
	// First what needs no passphrase and no network.
	ctl, err := ublk.OpenControl(ublk.ControlOptions{Logger: a.logger()})
	if err != nil {
		return mountError(err)
	}
	defer ctl.Close()
	repo, err := a.repository(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	b, err := a.findBackup(ctx, repo, args[0])
	if err != nil {
		return err
	}
	m := &mounting{a: a}
	volume := ""
	if len(args) == 2 {
		volume = args[1]
	}
	im, err := repo.OpenImage(ctx, b.ID, volume, backup.ImageOptions{
		CacheBytes: int64(o.cache), ReadAhead: int64(o.readAhead), Lease: m.lease, Logger: a.logger(),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	if err := removeDead(ctx, ctl, a.runDir(), a.logger()); err != nil {
		return mountError(err)
	}
	dev, err := serveImage(ctx, ctl, im, o.device, a.runDir(), a.logger())
	if err != nil {
		return mountError(err)
	}
	m.imageDevice = dev
	m.ready(ctx)
	err = m.serve(ctx)
	return errors.Join(err, m.end())
}

// mountError adds what to do about the driver.
func mountError(err error) error {
	switch {
	case errors.Is(err, ublk.ErrNoDriver):
		return &api.Error{Code: api.CodeUnsupported, Message: "backup mount: the ublk driver is not loaded",
			Remedy: `modprobe ublk_drv; "swapback doctor" tells more`}
	case errors.Is(err, fs.ErrPermission):
		return &api.Error{Code: api.CodeInternal, Message: "backup mount: " + err.Error(), Remedy: "run it as root"}
	}
	return err
}

// mounting is a block device that this command serves.
type mounting struct {
	a *app
	*imageDevice

	mu sync.Mutex // one line at a time
}

// Events of "backup mount --json".
type (
	mountEvent struct {
		Type       string           `json:"type"` // "device": it is there
		Device     string           `json:"device"`
		Backup     string           `json:"backup"`
		Created    time.Time        `json:"created"`
		Volume     backup.VolumeRef `json:"volume"`
		Filesystem string           `json:"filesystem,omitempty"`
		Options    string           `json:"mount_options,omitempty"`
	}
	leaseEvent struct {
		Type  string `json:"type"` // "lease": what keeps the backup's data was lost, or is there again
		Error string `json:"error,omitempty"`
	}
	waitingEvent struct {
		Type    string       `json:"type"` // "waiting": for those who use the device
		Holders []api.Holder `json:"holders"`
	}
	mountResult struct {
		Type   string            `json:"type"` // "result"
		Device string            `json:"device"`
		Stats  backup.ImageStats `json:"stats"`
		Damage []backup.BadRange `json:"damage,omitempty"`
	}
)

// tell writes an event for programs, or lines for people.
func (m *mounting) tell(event any, format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.a.json {
		_ = m.a.event(event) // nobody may be listening any more
		return
	}
	m.a.say(m.a.out, format, args...)
}

// lease hears of the image's lease. People are told by the log.
func (m *mounting) lease(err error) {
	if !m.a.json {
		return
	}
	e := leaseEvent{Type: "lease"}
	if err != nil {
		e.Error = err.Error()
	}
	m.tell(e, "")
}

// readOnlyOptions are how a filesystem is mounted that is another's twin, on a
// device that can't be written.
var readOnlyOptions = map[string]string{
	"ext4": "ro,noload",
	"xfs":  "ro,norecovery,nouuid",
	"f2fs": "ro,norecovery",
}

// ready tells that the device is there, and how to mount what is on it.
func (m *mounting) ready(ctx context.Context) {
	b, v, path := m.image.Backup(), m.image.Volume(), m.dev.Path()
	e := mountEvent{Type: "device", Device: path, Backup: b.ID, Created: b.Created, Volume: v.VolumeRef}
	hint := ""
	fstype, err := mount.DetectIn(path, io.NewSectionReader(readerAt{ctx, m.image}, 0, m.image.Size()))
	var unknown *mount.UnknownError
	switch {
	case errors.As(err, &unknown) && unknown.Found != "":
		hint = fmt.Sprintf("  it carries %s\n", unknown.Found)
	case err != nil:
	case readOnlyOptions[fstype] != "":
		e.Options = readOnlyOptions[fstype]
		hint = fmt.Sprintf("  mount -o %s %s DIR\n", e.Options, path)
	default:
		hint = fmt.Sprintf("  it carries %s; do not mount it while the volume itself is mounted\n", fstype)
	}
	e.Filesystem = fstype
	m.tell(e, "%s of backup %s (%s, %s) is on %s, read-only\n%sCtrl-C removes it\n",
		v.Name, b.ID, m.a.time(b.Created), formatSize(v.Size), path, hint)
}

// readerAt reads an image for as long as a context lasts.
type readerAt struct {
	ctx   context.Context
	image *backup.Image
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r.image.ReadAt(r.ctx, p, off) }

// lookEvery is how often those who keep the device from being removed are looked
// for.
const lookEvery = 250 * time.Millisecond

// serve returns when the device can be removed: nobody uses it after ctx has ended,
// or a second signal says that it does not matter.
func (m *mounting) serve(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-m.dev.Done():
		return m.gone()
	}
	again := make(chan os.Signal, 1)
	signal.Notify(again, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(again)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var told []api.Holder
	for looks := 0; ; looks++ {
		held, err := m.holders(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		if len(held) == 0 {
			return nil
		}
		// The first look may find udev, which has it open for a moment.
		if looks > 0 && !slices.Equal(held, told) {
			told = held
			m.tell(waitingEvent{"waiting", held}, "%s is in use:\n%swaiting until it is not; Ctrl-C again removes it, and they get I/O errors\n",
				m.dev.Path(), holderLines(held))
		}
		select {
		case <-tick.C:
		case <-again:
			return &api.Error{Code: api.CodeInUse, Message: m.dev.Path() + " was removed while it was in use", Holders: held,
				Remedy: "unmount what is mounted of it; it answers with I/O errors"}
		case <-m.dev.Done():
			return m.gone()
		}
	}
}

func (m *mounting) gone() error {
	if err := m.dev.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%s was removed by somebody else", m.dev.Path())
}

// holders names who uses the device. Where not everything can be looked at, what
// the kernel itself knows of (mounts, devices on top) is found all the same.
func (m *mounting) holders(ctx context.Context) ([]api.Holder, error) {
	finder := holders.Finder{Ignore: []int{os.Getpid()}, Probe: true}
	found, err := finder.Find(ctx, m.dev.Path())
	var incomplete *holders.IncompleteError
	if err != nil && !errors.As(err, &incomplete) {
		return nil, err
	}
	var list []api.Holder
	for _, h := range found {
		list = append(list, api.Holder{Kind: h.Kind, Device: h.Device, PID: h.PID, Command: h.Command, Detail: h.Detail})
	}
	return list, nil
}

func holderLines(list []api.Holder) string {
	var b strings.Builder
	for _, h := range list {
		fmt.Fprintf(&b, "  %s: %s\n", h.Device, h.Detail)
	}
	return b.String()
}

// stopTime bounds the removal of the device. Whoever has it open keeps its number
// from being free, which is not waited for.
const stopTime = 5 * time.Second

// end removes the device, and tells what it has done.
func (m *mounting) end() error {
	// Reads that wait for the repository are answered with an error, or the device
	// could not be stopped.
	err := m.image.Close()
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	err = errors.Join(err, m.stop(ctx, m.a.logger()))
	s, damage := m.image.Stats(), m.image.Damage()
	text := fmt.Sprintf("%s is removed; %s fetched in %d reads", m.dev.Path(), formatSize(s.ReadBytes), s.Fetches)
	if len(damage) > 0 {
		text += fmt.Sprintf("; %s of the backup could not be read back, see: swapback backup verify %s",
			plural(len(damage), "range"), m.image.Backup().ID)
	}
	m.tell(mountResult{"result", m.dev.Path(), s, damage}, "%s\n", text)
	return err
}
