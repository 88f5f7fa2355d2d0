package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent/job"
	"github.com/swapback/swapback/hostagent/mount"
	"github.com/swapback/swapback/hostagent/story"
)

// volume is a volume of the job during a run.
type volume struct {
	want job.Volume
	dir  string     // want.Mount without symbolic links, as the kernel knows it
	v    api.Volume // as it was when the run began
	// attached: by us, so it is detached at the end.
	attached bool
	// wasMounted: the run found it mounted at want.Mount, and leaves it so.
	wasMounted bool
	mounted    bool // now, at want.Mount
	fstype     string
	options    []string
}

func (v *volume) full() string { return v.v.Pool + "/" + v.v.Name }

// find looks at how the volume is mounted already. Anything that the job could
// not undo before a swap is an error.
func (v *volume) find(ctx context.Context, svc api.Service) error {
	v.fstype, v.options, v.dir = v.want.FSType, v.want.Options, v.want.Mount
	if real, err := filepath.EvalSymlinks(v.want.Mount); err == nil {
		v.dir = real // a mount point that is not there is told later
	}
	if v.v.Device == "" {
		return nil
	}
	number, err := deviceNumber(v.v.Device)
	if err != nil {
		return fmt.Errorf("volume %s: %w", v.full(), err)
	}
	mounts, err := mount.OfDevice(number)
	if err != nil {
		return fmt.Errorf("volume %s: %w", v.full(), err)
	}
	for _, m := range mounts {
		if v.want.Mount == "" || m.Dir != v.dir {
			return &api.Error{
				Code:    api.CodeInUse,
				Message: fmt.Sprintf("volume %s is mounted on %s, and the job does not say so", v.full(), m.Dir),
				Remedy:  "unmount it, or name this directory as its mount in the job",
			}
		}
		v.wasMounted, v.mounted = true, true
		if v.fstype == "" {
			v.fstype = m.FSType
		}
		if len(v.options) == 0 {
			v.options = m.AllOptions()
		}
	}
	held, err := svc.Holders(ctx, v.v.UUID)
	if err != nil {
		return fmt.Errorf("who holds volume %s: %w", v.full(), err)
	}
	if v.mounted {
		held = v.withoutOwnMount(held)
	}
	if len(held) > 0 {
		return &api.Error{
			Code: api.CodeInUse, Message: fmt.Sprintf("volume %s is in use; it could not be recovered", v.full()), Holders: held,
			Remedy: "unmount or stop what is named above",
		}
	}
	return nil
}

// withoutOwnMount leaves out the mount that the job knows of. On most machines
// it is there once more in the mount namespaces of services, under the same
// directory, and is unmounted there together with ours.
func (v *volume) withoutOwnMount(held []api.Holder) []api.Holder {
	return slices.DeleteFunc(held, func(h api.Holder) bool {
		return h.Kind == "mount" && (strings.HasSuffix(h.Detail, "mounted on "+v.dir) || strings.Contains(h.Detail, "mounted on "+v.dir+" "))
	})
}

func deviceNumber(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("device: %w", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	return st.Rdev, nil
}

// attach gives the volume a block device if it has none.
func (r *run) attach(ctx context.Context, v *volume) error {
	if v.v.Device != "" {
		return nil
	}
	now, err := r.o.Service.Attach(ctx, v.v.UUID, api.AttachRequest{})
	if err != nil {
		return fmt.Errorf("attach volume %s: %w", v.full(), err)
	}
	v.v, v.attached = now, true
	return nil
}

// mount mounts the volume as the job says, or as it was found.
func (r *run) mount(v *volume) error {
	if v.want.Mount == "" || v.mounted {
		return nil
	}
	start := time.Now()
	if v.fstype == "" {
		fstype, err := mount.Detect(v.v.Device)
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.full(), err)
		}
		v.fstype = fstype
	}
	if err := mount.Mount(v.v.Device, v.dir, v.fstype, v.options); err != nil {
		return fmt.Errorf("volume %s: %w", v.full(), err)
	}
	v.mounted = true
	r.story.Tell(story.Event{
		Event: story.Mounted, Volume: v.full(), Seconds: time.Since(start).Seconds(),
		Text: fmt.Sprintf("mounted %s (%s) on %s", v.full(), v.fstype, v.want.Mount),
	})
	return nil
}

// busyMountError: a filesystem could not be unmounted.
type busyMountError struct {
	volume, dir string
	users       []mount.User
	err         error
}

func (e *busyMountError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "volume %s: %v", e.volume, e.err)
	for _, u := range e.users {
		b.WriteString("\n  " + u.String())
	}
	if len(e.users) == 0 && errors.Is(e.err, unix.EBUSY) {
		b.WriteString("\n  no process is seen that uses it; another filesystem may be mounted below it")
	}
	return b.String()
}

func (e *busyMountError) Unwrap() error { return e.err }

// unmount unmounts the volume. Who keeps it busy is named.
func (r *run) unmount(ctx context.Context, v *volume) error {
	if !v.mounted {
		return nil
	}
	start := time.Now()
	// A step may have unmounted it. Mounted elsewhere it is refused by what comes
	// next, with where.
	at, err := mount.At(v.dir)
	if err == nil && at == nil || errors.Is(err, os.ErrNotExist) {
		v.mounted = false
		r.story.Tell(story.Event{Event: story.Note, Volume: v.full(), Text: fmt.Sprintf("%s is not mounted on %s any more", v.full(), v.want.Mount)})
		return nil
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", v.full(), err)
	}
	number, err := deviceNumber(v.v.Device)
	if err != nil {
		return fmt.Errorf("volume %s: %w", v.full(), err)
	}
	wait, cancel := context.WithTimeout(ctx, r.o.UnmountWait)
	defer cancel()
	if err := mount.Unmount(wait, v.dir); err != nil {
		users, uerr := mount.Users(ctx, number)
		if uerr != nil {
			r.o.Logger.Warn("looking for who keeps the filesystem busy", "err", uerr)
		}
		return &busyMountError{v.full(), v.want.Mount, users, err}
	}
	v.mounted = false
	r.story.Tell(story.Event{
		Event: story.Unmounted, Volume: v.full(), Seconds: time.Since(start).Seconds(),
		Text: fmt.Sprintf("unmounted %s from %s", v.full(), v.want.Mount),
	})
	return nil
}

// putAway brings a volume back to how the run found it: mounted or not,
// attached or not.
func (r *run) putAway(ctx context.Context, v *volume) error {
	if v.wasMounted {
		return r.mount(v)
	}
	if err := r.unmount(ctx, v); err != nil {
		return err
	}
	if !v.attached {
		return nil
	}
	if _, err := r.o.Service.Detach(ctx, v.v.UUID); err != nil {
		return fmt.Errorf("detach volume %s: %w", v.full(), err)
	}
	v.attached = false
	return nil
}
