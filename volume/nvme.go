package volume

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/swapback/swapback/nvmeof"
)

// NVMe says how volumes are served to other hosts.
type NVMe struct {
	// Listen are the addresses, IP:PORT, to listen on; without one no volume is served
	// to other hosts, whatever is recorded.
	Listen []string
	// Secrets is the file of the hosts' secrets, see secrets.go; "": there is none.
	Secrets string
	// Target has the limits. Logger and Incomplete are set here.
	Target nvmeof.Options
}

// listenAgain is the pause between two tries to listen on an address that can't be had,
// as before the network is up.
const listenAgain = 5 * time.Second

// drainPatience bounds the wait for what an earlier process has left in flight on a
// volume. It is what the driver gives an NVMe disk for a request.
const drainPatience = 30 * time.Second

// nvme is the second front door: the target that all exported volumes are served by.
type nvme struct {
	target  *nvmeof.Target
	secrets secrets

	mu    sync.Mutex
	ports map[string]string // address asked for → address that is listened on, or ""
	ended sync.WaitGroup
}

// openNVMe serves the exported volumes to other hosts, and then listens. What a process
// before this one had sent to the disks may still be under way: a write of it that lands
// after its host's next one would undo that. So each volume's device is drained before
// hosts can come, and when all are there: a host that finds its volume missing gives it up.
func (c *Controller) openNVMe(ctx context.Context) error {
	if len(c.opt.NVMe.Listen) == 0 {
		for _, t := range c.exported() {
			c.log.Warn("volume is exported, but no address to listen on was given", "volume", t.String())
		}
		return nil
	}
	opt := c.opt.NVMe.Target
	opt.Logger, opt.Incomplete = c.log, c.incomplete
	target, err := nvmeof.New(opt)
	if err != nil {
		return err
	}
	c.nvme = &nvme{target: target, secrets: secrets{path: c.opt.NVMe.Secrets}, ports: map[string]string{}}
	if err := c.nvme.secrets.check(); err != nil {
		c.log.Error("no host that has to authenticate can connect", "err", err)
	}
	var serving sync.WaitGroup
	for _, t := range c.exported() {
		serving.Go(func() { _ = c.serveRemoteAgain(ctx, t) }) // shown with the export
	}
	serving.Wait()
	for _, addr := range c.opt.NVMe.Listen {
		// The first try is made at once: who is told that the daemon is ready can connect.
		l, err := c.bind(addr)
		c.nvme.ended.Go(func() { c.listen(addr, l, err) })
	}
	c.nvme.ended.Go(c.serveFailed)
	return nil
}

// serveFailed tries again, until the controller closes, to serve exported volumes that
// could not be served, as when a disk has hung: their hosts try, too.
func (c *Controller) serveFailed() {
	for {
		select {
		case <-c.closing.Done():
			return
		case <-time.After(serveFailedEvery):
		}
		for _, t := range c.exported() {
			if r := c.remote(t); r == nil || r.failed == nil {
				continue
			}
			t, release, err := c.claimOne("serving it again", t.uuid())
			if err != nil {
				continue // busy, or gone
			}
			if r := c.remote(t); r != nil && r.failed != nil && t.info.Export != nil {
				_ = c.serveRemoteAgain(c.closing, t) // shown with the export
			}
			release()
		}
	}
}

// serveFailedEvery is a while for a disk, and short of the ten minutes for which Linux
// tries.
const serveFailedEvery = 10 * time.Second

// exported are the volumes that other hosts may use.
func (c *Controller) exported() (list []target) {
	for _, p := range c.poolsSorted() {
		for _, v := range p.Volumes() {
			if v.Export != nil {
				list = append(list, target{p, v})
			}
		}
	}
	return list
}

// incomplete tells whether there are, or may be, exported volumes that are not served: in
// a pool that is not open, or because something was in the way.
func (c *Controller) incomplete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.failed) > 0 {
		return true
	}
	for _, r := range c.remotes {
		if r.failed != nil {
			return true
		}
	}
	return false
}

// bind begins to listen on an address.
func (c *Controller) bind(addr string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(c.closing, "tcp", addr)
	if err != nil {
		c.nvme.listening(addr, "")
		return nil, err
	}
	c.nvme.listening(addr, l.Addr().String())
	c.log.Info("listening for NVMe hosts", "address", l.Addr().String())
	return l, nil
}

// listen serves what bind has returned, and binds again when that fails, until the
// controller closes. That an address can't be had is no reason to end: the volumes' users
// on this machine need it not.
func (c *Controller) listen(addr string, l net.Listener, err error) {
	for said := ""; ; l, err = c.bind(addr) {
		if err == nil {
			err = c.nvme.target.Serve(l)
			c.nvme.listening(addr, "")
		}
		if err == nil || c.closing.Err() != nil {
			return
		}
		if text := err.Error(); text != said {
			c.log.Error("not listening for NVMe hosts; trying again", "address", addr, "every", listenAgain, "err", err)
			said = text
		}
		select {
		case <-c.closing.Done():
			return
		case <-time.After(listenAgain):
		}
	}
}

func (n *nvme) listening(addr, bound string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports[addr] = bound
}

// addresses are those that are listened on.
func (n *nvme) addresses() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := []string{}
	for _, bound := range n.ports {
		if bound != "" {
			list = append(list, bound)
		}
	}
	slices.Sort(list)
	return list
}

// closeNVMe ends all connections, which hosts try to make again, and returns when nothing
// of them is in flight any more.
func (c *Controller) closeNVMe(ctx context.Context) error {
	if c.nvme == nil {
		return nil
	}
	if err := c.nvme.target.Close(ctx); err != nil {
		return err
	}
	c.nvme.ended.Wait()
	c.mu.Lock()
	remotes := c.remotes
	c.remotes = map[string]*remote{}
	c.mu.Unlock()
	var errs []error
	for _, r := range remotes {
		errs = append(errs, r.close())
	}
	return errors.Join(errs...)
}

// connectLines are what a host runs to connect to a subsystem, for each address.
func connectLines(listen []string, nqn string, authenticate bool) []string {
	lines := []string{}
	for _, addr := range reachable(listen) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			continue
		}
		line := fmt.Sprintf("nvme connect -t tcp -a %s -s %s -n %s", host, port, nqn)
		if authenticate {
			line += ` --dhchap-secret "$DHCHAP_SECRET"`
		}
		lines = append(lines, line)
	}
	return lines
}

// reachable has, for one that listens on all addresses, those of this machine.
func reachable(listen []string) (list []string) {
	for _, addr := range listen {
		host, port, err := net.SplitHostPort(addr)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsUnspecified() {
			list = append(list, addr)
			continue
		}
		found, _ := net.InterfaceAddrs()
		for _, a := range found {
			n, ok := a.(*net.IPNet)
			if ok && n.IP.IsGlobalUnicast() && (strings.Contains(host, ":") || n.IP.To4() != nil) {
				list = append(list, net.JoinHostPort(n.IP.String(), port))
			}
		}
	}
	return list
}
