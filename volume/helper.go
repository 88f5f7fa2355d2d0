package volume

import (
	"context"
	"os"
	"slices"

	"github.com/swapback/swapback/holders"
)

// Helper is another process, which has some block devices open from before a swap
// looks at them until it has ended, and does there what may wait for them.
//
// A process that is killed while it waits for a page or a block of its own device
// never ends: its queues are gone, so nobody answers, so it keeps the device open,
// so the driver does not see its server go, and no other can take over. That does
// not take a read or a write: an fsync waits, and so does whoever is the last to
// close a device that has dirty pages, which the exit of a process may be. So the
// devices stay open in the helper until this process has closed them and until all
// of it has ended.
type Helper interface {
	// PID is the process, which is no holder of the devices.
	PID() int
	// WriteBack and CheckAllCoherent have the functions of these names in package pagecache done. They
	// return when ctx ends, whatever becomes of the helper, which is of no use
	// then.
	WriteBack(ctx context.Context) (lost []error, err error)
	CheckAllCoherent(ctx context.Context) error
	// Close lets go of the devices and waits a while for that.
	Close()
}

// HelperName is what a helper calls itself, in at most 15 bytes (PR_SET_NAME).
const HelperName = "swapback-helper"

// startHelper starts a helper, whom nobody takes for a holder until endHelper.
func (c *Controller) startHelper(ctx context.Context, devices []string) (Helper, error) {
	h, err := c.opt.Helper(ctx, devices)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.helpers = append(c.helpers, h.PID())
	return h, nil
}

func (c *Controller) endHelper(h Helper) {
	h.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.helpers, h.PID()); i >= 0 {
		c.helpers = slices.Delete(c.helpers, i, i+1)
	}
}

// finder finds the holders of devices, of whom we are none.
func (c *Controller) finder() holders.Finder {
	c.mu.Lock()
	defer c.mu.Unlock()
	return holders.Finder{Ignore: append([]int{os.Getpid()}, c.helpers...), Passing: []string{HelperName}}
}
