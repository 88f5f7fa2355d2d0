package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/dmswap"
	"github.com/swapback/swapback/nvmeof"
	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/wire"
	"github.com/swapback/swapback/ublk"
)

// remote is a volume as other hosts see it: a subsystem of its own, so that it has hosts
// of its own, with one namespace on the volume's device, and one for each snapshot that is
// shown to them.
type remote struct {
	name    string // POOL/VOLUME, for messages
	subsys  *nvmeof.Subsystem
	ns      *nvmeof.Namespace
	backend *nvmeof.Backend
	limits  ublk.Limits // that hosts were told of
	heard   *remoteFailures
	// authenticate is [dmswap.Export].Authenticate.
	authenticate atomic.Bool
	failed       error // why a volume that should be served is not; then there is nothing of the above but name

	naming sync.Mutex
	named  uint32 // identifier that the last snapshot got, 0 before the first
}

// remoteNamespace is the identifier of the volume's namespace, and remoteGroup that
// of its ANA group.
const (
	remoteNamespace = 1
	remoteGroup     = 1
)

// nqnOf is the name by which hosts connect to a volume: the form that is made from a UUID
// (NVM Express Base 4.5), for a volume has one and we own no domain.
func nqnOf(volume string) string { return "nqn.2014-08.org.nvmexpress:uuid:" + volume }

// serialOf is as much of the volume's UUID as there is room for.
func serialOf(volume string) string { return strings.ReplaceAll(volume, "-", "")[:20] }

// modelOf is what people see in "nvme list".
func modelOf(t target) string {
	text := "swapback " + t.String()
	return text[:min(len(text), 40)]
}

// remote returns how a volume is served to other hosts, or nil.
func (c *Controller) remote(t target) *remote {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.remotes[t.uuid()]
}

// door is remote when other hosts can use the volume, else nil.
func (c *Controller) door(t target) *remote {
	if r := c.remote(t); r != nil && r.failed == nil {
		return r
	}
	return nil
}

func (c *Controller) setRemote(t target, r *remote) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r == nil {
		delete(c.remotes, t.uuid())
		return
	}
	c.remotes[t.uuid()] = r
}

// serveRemoteAgain serves a volume to other hosts that an earlier process may have served,
// or notes why it can't.
func (c *Controller) serveRemoteAgain(ctx context.Context, t target) error {
	limit, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	err := t.pool.Drain(limit, t.uuid())
	if err == nil {
		err = c.serveRemote(ctx, t)
	}
	if err != nil {
		if before := c.remote(t); before == nil || before.failed == nil || before.failed.Error() != err.Error() {
			c.log.Error("volume not served to other hosts; trying again", "volume", t.String(), "every", serveFailedEvery, "err", err)
		}
		c.setRemote(t, &remote{name: t.String(), failed: err})
	}
	return err
}

// serveRemote serves a volume to other hosts, if it is exported and there is a door. Of
// what earlier processes did nothing is in flight.
func (c *Controller) serveRemote(_ context.Context, t target) error {
	if c.nvme == nil || t.info.Export == nil {
		return nil
	}
	changed, err := c.changesOf(t)
	if err != nil {
		return err
	}
	now, err := t.pool.Volume(t.uuid()) // see serve
	if err != nil {
		return fromPool(fmt.Sprintf("volume %s", t), err)
	}
	local, err := openBackend(t.pool, now.Device)
	if err != nil {
		return fmt.Errorf("backend of volume %s: %w", t, err)
	}
	r := &remote{name: t.String(), limits: local.Limits()}
	if err := local.Close(); err != nil {
		return fmt.Errorf("backend of volume %s: %w", t, err)
	}
	id, err := uuid.Parse(t.uuid())
	if err != nil {
		return fmt.Errorf("volume %s: %w", t, err)
	}
	r.backend, err = nvmeof.OpenBackend(now.Device, nvmeof.Limits{
		LogicalBlockSize: r.limits.LogicalBlockSize, PhysicalBlockSize: r.limits.PhysicalBlockSize,
		OptimalIOSize: r.limits.OptimalIOSize, VolatileCache: r.limits.VolatileCache, Discard: r.limits.MaxDiscard > 0,
	})
	if err != nil {
		return fmt.Errorf("backend of volume %s: %w", t, err)
	}
	reservations, err := c.reservationsOf(t)
	if err != nil {
		return errors.Join(err, r.close())
	}
	r.heard = newRemoteFailures(c.failureLog(t))
	r.authenticate.Store(t.info.Export.Authenticate)
	r.subsys, err = c.nvme.target.AddSubsystem(nvmeof.SubsystemConfig{
		NQN: nqnOf(t.uuid()), Serial: serialOf(t.uuid()), Model: modelOf(t), Hosts: t.info.Export.Hosts,
		Authenticate: func(host string) (auth.Config, bool) { return c.authenticate(r, host) },
		Namespaces: []nvmeof.NamespaceConfig{{
			ID: remoteNamespace, Backend: r.backend, UUID: id, NGUID: id, ANAGroup: remoteGroup,
			ReadOnly: t.readOnly(), Changes: hostChanges{changed.Blocks()}, Failed: r.heard.add,
			Reservations: reservations,
		}},
	})
	if err != nil {
		return errors.Join(fmt.Errorf("volume %s: %w", t, err), r.close())
	}
	r.ns = r.subsys.Namespace(remoteNamespace)
	c.setRemote(t, r)
	c.log.Info("volume exported", "volume", t.String(), "nqn", r.subsys.NQN(), "hosts", t.info.Export.Hosts, "read_only", r.ns.ReadOnly())
	return nil
}

// hostChanges has a namespace ask the change map that a block device's queues mark in.
type hostChanges struct{ blocks *ublk.ChangeMap }

// Touch implements [nvmeof.Changes].
func (h hostChanges) Touch(off, n uint64, w nvmeof.Waker) (yes bool, no unix.Errno) {
	return h.blocks.Touch(off, n, w)
}

// stopRemote ends a volume's service to other hosts, if there is one. After an error
// something of theirs may still be in flight; the volume counts as failed then.
func (c *Controller) stopRemote(ctx context.Context, t target) error {
	r := c.remote(t)
	if r == nil {
		return nil
	}
	if r.failed == nil {
		limit, cancel := context.WithTimeout(ctx, drainPatience)
		defer cancel()
		if err := c.nvme.target.RemoveSubsystem(limit, r.subsys.NQN()); err != nil {
			// Its backend stays open, for what is in flight.
			c.setRemote(t, &remote{name: r.name, failed: err})
			return fmt.Errorf("volume %s: ending its connections: %w", t, err)
		}
		if err := r.close(); err != nil {
			c.log.Warn("backend not closed", "volume", t.String(), "err", err)
		}
	} else if err := t.pool.Drain(ctx, t.uuid()); err != nil {
		return fromPool(fmt.Sprintf("volume %s: waiting for what is in flight", t), err)
	}
	c.setRemote(t, nil)
	return nil
}

// close gives back what is not the target's. Nothing is in flight any more.
func (r *remote) close() error {
	if r.heard != nil {
		r.heard.close()
	}
	if r.backend == nil {
		return nil
	}
	return r.backend.Close()
}

// unsuited is [export.unsuited] of what hosts were told.
func (r *remote) unsuited(p *dmswap.Pool, under *dmswap.Position) error {
	for _, disk := range disksOf(p, under) {
		if err := r.limits.Suit(disk); err != nil {
			return err
		}
	}
	return nil
}

// holders are the hosts that are connected, but for those that somebody has released. What
// they do there we can't see: each counts as one who uses the volume.
func (r *remote) holders(released ...string) []api.Holder {
	return holdersAmong(r.name, r.subsys.Connected(), released)
}

func holdersAmong(volume string, connected []nvmeof.Connected, released []string) (list []api.Holder) {
	// Who has released a host has done so on one machine. Another of the same name, as one
	// made from a copy of its disk is, it knows nothing of.
	machines := map[string][][16]byte{}
	for _, c := range connected {
		if !slices.Contains(machines[c.Host], c.HostID) {
			machines[c.Host] = append(machines[c.Host], c.HostID)
		}
	}
	for _, c := range connected {
		detail := fmt.Sprintf("host %s, connected from %s", c.Host, c.Peer)
		if slices.Contains(released, c.Host) {
			if len(machines[c.Host]) == 1 {
				continue
			}
			detail += ", a name that machines with different host identifiers have"
		}
		list = append(list, api.Holder{Kind: "nvme", Device: volume, Host: c.Host, Detail: detail})
	}
	return list
}

// hostsOf are the hosts that are connected to any of the volumes, but for those released.
func (c *Controller) hostsOf(released []string, targets ...target) (list []api.Holder) {
	for _, t := range targets {
		if r := c.door(t); r != nil {
			list = append(list, r.holders(released...)...)
		}
	}
	return list
}

// refuseHosts returns an error that names the hosts that are connected and not released.
func (c *Controller) refuseHosts(released []string, targets ...target) error {
	list := c.hostsOf(released, targets...)
	if len(list) == 0 {
		return nil
	}
	return &api.Error{
		Code: api.CodeInUse, Message: fmt.Sprintf("volume %s is in use by other hosts", list[0].Device), Holders: list,
		Remedy: "unmount it there and disconnect (nvme disconnect); export delete --force ends their connections",
	}
}

// describeRemote tells how other hosts reach a volume.
func (c *Controller) describeRemote(t target) api.Export {
	e := api.Export{
		Volume: t.String(), NQN: nqnOf(t.uuid()), UUID: t.uuid(), Serial: serialOf(t.uuid()), Size: t.info.Size, ReadOnly: t.readOnly(),
		Hosts: t.info.Export.Hosts, Authenticate: t.info.Export.Authenticate,
		Listen: []string{}, Addresses: []string{}, Connect: []string{}, Connected: []api.ConnectedHost{},
	}
	c.mu.Lock()
	reservations := c.reservations[t.uuid()]
	c.mu.Unlock()
	e.Reservations = describeReservations(reservations)
	if c.nvme == nil {
		e.Error = "the daemon listens nowhere for NVMe hosts (start it with --nvme-listen)"
		return e
	}
	e.Listen = c.nvme.addresses()
	if a := reachable(e.Listen); a != nil {
		e.Addresses = a
	}
	e.Connect = connectLines(e.Listen, e.NQN, e.Authenticate)
	switch r := c.remote(t); {
	case r == nil:
		e.Error = "it is not served yet"
	case r.failed != nil:
		e.Error = r.failed.Error()
	case len(e.Listen) == 0:
		e.Error = "the daemon can't listen on any of the addresses that it was given; its log says why"
	default:
		e.Serving = true
		e.ReadOnly = r.ns.ReadOnly()
		e.IO = describeRemoteIO(r.ns.Stats())
		for _, h := range r.subsys.Connected() {
			e.Connected = append(e.Connected, api.ConnectedHost{
				Host: h.Host, HostID: uuid.UUID(h.HostID).String(), Controller: int(h.Controller), Address: h.Peer, Queues: h.Queues,
			})
		}
	}
	return e
}

func describeRemoteIO(s nvmeof.Stats) *api.IOStats {
	return &api.IOStats{
		Reads: s.Reads, ReadBytes: s.ReadBytes, Writes: s.Writes, WriteBytes: s.WriteBytes,
		Flushes: s.Flushes, Discards: s.Discards, WriteZeroes: s.WriteZeroes,
		Errors: s.Errors, Held: s.Held, Refused: s.Refused,
	}
}

// remoteFailures takes failures from the queues of hosts to the volume's failureLog, and
// never lets a queue wait.
type remoteFailures struct {
	c       chan ublk.Failure
	dropped atomic.Uint64
	ended   sync.WaitGroup
}

// remoteFailureRoom is how many failures may wait to be heard of.
const remoteFailureRoom = 64

func newRemoteFailures(l *failureLog) *remoteFailures {
	f := &remoteFailures{c: make(chan ublk.Failure, remoteFailureRoom)}
	f.ended.Go(func() {
		for x := range f.c {
			l.heard(x, f.dropped.Swap(0))
		}
	})
	return f
}

var remoteOps = map[nvmeof.Op]ublk.Op{
	nvmeof.OpRead: ublk.OpRead, nvmeof.OpWrite: ublk.OpWrite, nvmeof.OpFlush: ublk.OpFlush,
	nvmeof.OpDiscard: ublk.OpDiscard, nvmeof.OpWriteZeroes: ublk.OpWriteZeroes,
}

func (f *remoteFailures) add(x nvmeof.Failure) {
	select {
	case f.c <- ublk.Failure{Op: remoteOps[x.Op], Offset: x.Offset, Length: x.Length, Errno: x.Errno}:
	default:
		f.dropped.Add(1)
	}
}

// close returns when everything was heard. No queue runs any more.
func (f *remoteFailures) close() {
	close(f.c)
	f.ended.Wait()
}

// yieldAfter is how long a gate may be closed before hosts are told that it will take a
// while: shorter than what a held command waits (nvmeof.Options.HoldFor).
const yieldAfter = 15 * time.Second

// turnAwayAfter is how long a gate may be closed before hosts that know nothing of
// asymmetric access are turned away. Until then a command was answered "try again" twice,
// of the five times that Linux takes that; its connection's end is a third.
const turnAwayAfter = 45 * time.Second

// unreachable tells hosts that know of asymmetric access that the volume is not to be
// reached now, and then that it is again. Linux waits then for as long as it takes.
func (r *remote) unreachable(on bool) error {
	state := wire.ANAOptimized
	if on {
		state = wire.ANAUnreachable
	}
	return r.subsys.SetANA(remoteGroup, state)
}
