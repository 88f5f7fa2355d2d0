// Package afar makes volumes of another machine usable as those of one's own. It wraps the
// service of a daemon so that what means something on one machine only is about this one:
//
//   - a volume's block device is the one by which this machine has it, by NVMe/TCP
//   - attaching connects it here, and detaching disconnects what was connected so
//   - a snapshot's device is the namespace that the daemon shows the volume's hosts
//   - the holders are those of this machine, and whoever the daemon knows but us
//   - a swap is prepared and checked here as the daemon does it on its own machine
//
// The daemon takes our word for what happens here only where its file of rights says so.
// Of a daemon of this machine nothing is changed.
package afar

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/holders"
	"github.com/swapback/swapback/hostagent/nvmehost"
)

// Service is a daemon's service as this machine uses it. It is safe for concurrent use.
type Service struct {
	api.Service
	host nvmehost.Host

	mu     sync.Mutex
	remote *bool // nil until the daemon has said
	mine   map[string]*nvmehost.Connection
}

// New wraps a service; what it connects it disconnects at Close.
func New(svc api.Service, host nvmehost.Host) *Service {
	return &Service{Service: svc, host: host, mine: map[string]*nvmehost.Connection{}}
}

// connectTime bounds the wait for a disk to appear here, and disconnectTime that for the
// daemon to see that one is gone.
const (
	connectTime    = time.Minute
	disconnectTime = 10 * time.Second
	lookEvery      = 20 * time.Millisecond
)

// caller is who we are to the daemon; nil when it is this machine's.
func (s *Service) caller(ctx context.Context) (*api.Caller, error) {
	s.mu.Lock()
	known := s.remote
	s.mu.Unlock()
	if known != nil && !*known {
		return nil, nil
	}
	info, err := s.Service.Info(ctx)
	if err != nil {
		return nil, err
	}
	remote := info.Caller != nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remote = &remote
	return info.Caller, nil
}

// Remote tells whether a service is a [Service] of another machine's daemon.
func Remote(ctx context.Context, svc api.Service) (bool, error) {
	s, ok := svc.(*Service)
	if !ok {
		return false, nil
	}
	c, err := s.caller(ctx)
	return c != nil, err
}

// Close disconnects what is still connected by this.
func (s *Service) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for id, c := range s.mine {
		errs = append(errs, c.Close())
		delete(s.mine, id)
	}
	return errors.Join(errs...)
}

// volume is one of another machine's daemon, with its device here.
func (s *Service) volume(ctx context.Context, ref string) (api.Volume, error) {
	v, err := s.Service.Volume(ctx, ref)
	v.Device = s.host.Device(v.UUID)
	return v, err
}

// Attach implements [api.Service]: it connects the volume here, if it is exported.
func (s *Service) Attach(ctx context.Context, ref string, req api.AttachRequest) (api.Volume, error) {
	me, err := s.caller(ctx)
	if err != nil {
		return api.Volume{}, err
	}
	if me == nil {
		return s.Service.Attach(ctx, ref, req)
	}
	v, err := s.volume(ctx, ref)
	if err != nil {
		return api.Volume{}, err
	}
	if v.NQN == "" {
		return api.Volume{}, notExported(v)
	}
	if v.Device != "" {
		return api.Volume{}, &api.Error{Code: api.CodeExists, Message: fmt.Sprintf("volume %s is connected here already, as %s", full(v), v.Device)}
	}
	e, err := s.Service.Export(ctx, v.UUID)
	if err != nil {
		return api.Volume{}, err
	}
	like, err := s.like(ctx, me, e)
	if err != nil {
		return api.Volume{}, err
	}
	limit, cancel := context.WithTimeoutCause(ctx, connectTime, fmt.Errorf("not within %v", connectTime))
	defer cancel()
	conn, err := s.host.Connect(limit, nvmehost.Subsystem{NQN: e.NQN, UUID: e.UUID, Like: like, Addresses: e.Addresses})
	if err != nil {
		return api.Volume{}, &api.Error{
			Code: api.CodeUnsupported, Message: fmt.Sprintf("volume %s can't be connected here: %v", full(v), err),
			Remedy: "connect it as root: " + connectLine(e),
		}
	}
	s.mu.Lock()
	s.mine[v.UUID] = conn
	s.mu.Unlock()
	v.Device = conn.Device
	return v, nil
}

// like are the connections by which this machine has other volumes of the daemon, in a name
// that may use this one, too.
func (s *Service) like(ctx context.Context, me *api.Caller, e api.Export) ([]nvmehost.Controller, error) {
	all, err := s.Service.Exports(ctx)
	if err != nil {
		return nil, err
	}
	for _, other := range all {
		device := s.host.Device(other.UUID)
		if device == "" {
			continue
		}
		list, err := s.host.Controllers(device)
		if err != nil {
			return nil, err
		}
		list = slices.DeleteFunc(list, func(c nvmehost.Controller) bool {
			return !slices.Contains(e.Hosts, c.HostNQN) || !slices.Contains(me.Hosts, c.HostNQN)
		})
		if len(list) > 0 {
			return list, nil
		}
	}
	return nil, nil
}

// connectLine is what somebody can paste.
func connectLine(e api.Export) string {
	if len(e.Connect) == 0 {
		return "swapback export show " + e.Volume + " tells how"
	}
	return strings.Join(e.Connect, " or: ")
}

// Detach implements [api.Service]: it disconnects what Attach has connected.
func (s *Service) Detach(ctx context.Context, ref string) (api.Volume, error) {
	me, err := s.caller(ctx)
	if err != nil {
		return api.Volume{}, err
	}
	if me == nil {
		return s.Service.Detach(ctx, ref)
	}
	v, err := s.volume(ctx, ref)
	if err != nil {
		return v, err
	}
	if err := s.letGo(ctx, v); err != nil {
		return v, err
	}
	return s.Service.Volume(ctx, v.UUID)
}

// letGo disconnects a volume if this has connected it, and returns when the daemon has seen
// that, or after a while.
func (s *Service) letGo(ctx context.Context, v api.Volume) error {
	s.mu.Lock()
	conn := s.mine[v.UUID]
	delete(s.mine, v.UUID)
	s.mu.Unlock()
	if conn == nil {
		return nil
	}
	before, err := s.host.Controllers(conn.Device)
	if err != nil {
		return err
	}
	if err := conn.Close(); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, disconnectTime)
	defer cancel()
	for {
		e, err := s.Service.Export(limit, v.UUID)
		if err != nil || !slices.ContainsFunc(e.Connected, func(c api.ConnectedHost) bool { return c.Host == before[0].HostNQN }) {
			return nil // or who asks next is told
		}
		select {
		case <-limit.Done():
			return nil
		case <-time.After(lookEvery):
		}
	}
}

// DeleteVolume implements [api.Service]. A volume that is connected can't be deleted.
func (s *Service) DeleteVolume(ctx context.Context, ref string, force bool) error {
	me, err := s.caller(ctx)
	if err != nil {
		return err
	}
	if me != nil {
		v, err := s.volume(ctx, ref)
		if err != nil {
			return err
		}
		if err := s.letGo(ctx, v); err != nil {
			return err
		}
	}
	return s.Service.DeleteVolume(ctx, ref, force)
}

// Holders implements [api.Service].
func (s *Service) Holders(ctx context.Context, ref string) ([]api.Holder, error) {
	me, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.Service.Holders(ctx, ref)
	if err != nil || me == nil {
		return all, err
	}
	v, err := s.volume(ctx, ref)
	if err != nil || v.Device == "" {
		return all, err
	}
	names, err := s.names(v.Device)
	if err != nil {
		return nil, err
	}
	finder := s.finder()
	finder.Probe = true
	found, err := finder.Lasting(ctx, v.Device)
	return append(others(all, names, me), holdersHere(found)...), err
}

// others are the holders that the daemon knows, without this machine, which is connected by
// some names, as far as the caller speaks for it. What it does is looked for here.
func others(all []api.Holder, names []string, me *api.Caller) []api.Holder {
	list := []api.Holder{}
	for _, h := range all {
		switch {
		case h.Host == "" || !slices.Contains(names, h.Host):
		case slices.Contains(me.Hosts, h.Host):
			continue
		default:
			h.Detail += fmt.Sprintf("; that is this machine, but client %s does not speak for it (on the storage machine, in the file of rights: host %s %s)", me.Name, me.Name, h.Host)
		}
		list = append(list, h)
	}
	return list
}

func (s *Service) finder() *holders.Finder { return &holders.Finder{Ignore: []int{os.Getpid()}} }

func holdersHere(found []holders.Holder) (list []api.Holder) {
	for _, h := range found {
		list = append(list, api.Holder{Kind: h.Kind, Device: h.Device, PID: h.PID, Command: h.Command, Detail: h.Detail})
	}
	return list
}

// names are those by which this machine is connected to a device.
func (s *Service) names(device string) (names []string, err error) {
	list, err := s.host.Controllers(device)
	for _, c := range list {
		if !slices.Contains(names, c.HostNQN) {
			names = append(names, c.HostNQN)
		}
	}
	return names, err
}

func full(v api.Volume) string { return v.Pool + "/" + v.Name }

func notExported(v api.Volume) error {
	return &api.Error{
		Code: api.CodeUnsupported, Message: fmt.Sprintf("volume %s is not for other machines, such as this one", full(v)),
		Remedy: fmt.Sprintf("export it, on the storage machine: swapback export create %s --host $(cat /etc/nvme/hostnqn)", full(v)),
	}
}
