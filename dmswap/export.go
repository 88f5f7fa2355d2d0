package dmswap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"unicode"
	"unicode/utf8"

	"github.com/swapback/swapback/dmswap/dm"
	"github.com/swapback/swapback/failpoint"
)

// Export says which other hosts may use a volume. It belongs to the volume's name and
// stays there in a swap. The pool keeps it for whoever serves the volume.
type Export struct {
	// Hosts are the names (NQN) of those who may.
	Hosts []string `json:"hosts"`
	// Authenticate: only who proves that he is one of them.
	Authenticate bool `json:"authenticate,omitempty"`
}

const (
	maxExportHosts = 256
	maxHostName    = 223 // bytes of an NQN (NVM Express Base 4.5)
)

func (e *Export) clone() *Export {
	if e == nil {
		return nil
	}
	return &Export{Hosts: slices.Clone(e.Hosts), Authenticate: e.Authenticate}
}

func (e *Export) equal(o *Export) bool {
	if e == nil || o == nil {
		return e == o
	}
	return e.Authenticate == o.Authenticate && slices.Equal(e.Hosts, o.Hosts)
}

func (e *Export) check() error {
	if len(e.Hosts) == 0 || len(e.Hosts) > maxExportHosts {
		return fmt.Errorf("an export to %d hosts: want 1 to %d", len(e.Hosts), maxExportHosts)
	}
	seen := map[string]bool{}
	for _, h := range e.Hosts {
		if h == "" || len(h) > maxHostName || !utf8.ValidString(h) || seen[h] || slices.ContainsFunc([]rune(h), unicode.IsControl) {
			return fmt.Errorf("an export to host %q: empty, too long, no text, or named twice", h)
		}
		seen[h] = true
	}
	return nil
}

// Reservations are what hosts of an exported volume have registered and reserved, and want
// to find again after a loss of power (NVM Express Base 8.19). They stay with the name, too.
type Reservations struct {
	// Type is that of the reservation, 1 to 6; 0: there is none, only registrants.
	Type        int          `json:"type"`
	Registrants []Registrant `json:"registrants"`
}

// Registrant is a host that has registered.
type Registrant struct {
	Host   UUID   `json:"host"` // its identifier (HOSTID)
	Key    uint64 `json:"key"`
	Holder bool   `json:"holder,omitempty"`
}

const (
	maxReservationType = 6
	maxRegistrants     = 128
)

func (r *Reservations) clone() *Reservations {
	if r == nil {
		return nil
	}
	return &Reservations{Type: r.Type, Registrants: slices.Clone(r.Registrants)}
}

func (r *Reservations) check() error {
	if r.Type < 0 || r.Type > maxReservationType || len(r.Registrants) == 0 || len(r.Registrants) > maxRegistrants {
		return fmt.Errorf("reservations of type %d with %d registrants", r.Type, len(r.Registrants))
	}
	seen := map[UUID]bool{}
	for _, g := range r.Registrants {
		if !validUUID(g.Host) || seen[g.Host] {
			return fmt.Errorf("reservations of host %q: no identifier, or named twice", g.Host)
		}
		seen[g.Host] = true
	}
	return nil
}

// SetReservations records what hosts have reserved of an exported volume, named by name or
// UUID; nil: nothing. Unlike other changes of a volume it is also made while another
// operation is under way, which it does not touch.
func (p *Pool) SetReservations(ctx context.Context, ref string, r *Reservations) error {
	if r != nil {
		if err := r.check(); err != nil {
			return errf(ErrInvalid, "", "volume %s: %v", ref, err)
		}
	}
	r = r.clone()
	return p.setBusyRecord(ctx, ref, func(v *volumeRecord, _ *positionRecord) bool {
		if v.Export == nil {
			r = nil // it has ended meanwhile
		}
		same := r == nil && v.Reservations == nil
		v.Reservations = r
		return !same
	})
}

// setBusyRecord is setRecord for what no other operation on the volume minds.
func (p *Pool) setBusyRecord(ctx context.Context, ref string, change func(*volumeRecord, *positionRecord) bool) error {
	return p.changeRecord(ctx, ref, func(*volumeRecord) error { return nil }, change)
}

// SetExport records which hosts may use a volume, named by name or UUID; nil: none, and
// none has reserved it any more.
func (p *Pool) SetExport(ctx context.Context, ref string, e *Export) error {
	if e != nil {
		if err := e.check(); err != nil {
			return errf(ErrInvalid, "name each host once, by its NQN", "volume %s: %v", ref, err)
		}
	}
	e = e.clone()
	return p.setRecord(ctx, ref, func(v *volumeRecord, _ *positionRecord) bool {
		same := e.equal(v.Export)
		if v.Export = e; e == nil {
			v.Reservations = nil
		}
		return !same
	})
}

// Drain returns when all I/O has landed that was in flight on a volume's device when it
// was called, also that of a process which has ended: it suspends the device and resumes
// it. New I/O waits meanwhile. When ctx ends first, nothing has changed. A volume with a
// snapshot open is refused.
func (p *Pool) Drain(ctx context.Context, ref string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	list, release, err := p.claim("waiting for its I/O", ref)
	if err != nil {
		return err
	}
	defer release()
	device := p.ref(list[0].UUID, "")
	if err := p.kernel.Suspend(ctx, device, dm.SuspendOptions{}); err != nil {
		// It may have got there all the same.
		err = errors.Join(err, p.kernel.Resume(context.WithoutCancel(ctx), device))
		return fmt.Errorf("waiting for the I/O of volume %s: %w", list[0].Name, err)
	}
	failpoint.Hit("drain: suspended")
	if err := p.kernel.Resume(context.WithoutCancel(ctx), device); err != nil {
		return fmt.Errorf("waiting for the I/O of volume %s: %w", list[0].Name, err)
	}
	return nil
}
