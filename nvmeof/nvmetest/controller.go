package nvmetest

import (
	"fmt"
	"time"

	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/wire"
)

// Config is who connects to what.
type Config struct {
	Addr    string
	Subsys  string
	Host    string   // "" is HostNQN
	HostID  [16]byte // zero is one of the package's
	KATO    time.Duration
	Queues  int // I/O queues
	Depth   int // entries of an I/O queue (128)
	Flow    bool
	ANA     bool       // heed asymmetric access: its log is read before there are I/O queues
	Auth    *auth.Host // nil: it cannot prove who it is
	Options Options
}

// HostNQN is the host that a Config names if it names none.
const HostNQN = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"

func (c Config) withDefaults() Config {
	if c.Host == "" {
		c.Host = HostNQN
	}
	if c.HostID == [16]byte{} {
		c.HostID = [16]byte{1, 2, 3}
	}
	if c.Depth == 0 {
		c.Depth = 128
	}
	return c
}

func (c Config) attributes() uint8 {
	if c.Flow {
		return 0
	}
	return wire.ConnectNoSQFlow
}

// Controller is one association.
type Controller struct {
	Config
	Admin *Queue
	IO    []*Queue
	ID    uint16
	Ident wire.IdentifyController
}

// Connect does what Linux does: admin queue, enable, identify, number of queues,
// events, I/O queues.
func Connect(cfg Config) (*Controller, error) {
	cfg = cfg.withDefaults()
	c := &Controller{Config: cfg}
	if err := c.connect(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Controller) connect() (err error) {
	if c.Admin, err = Dial(c.Addr, c.Options); err != nil {
		return err
	}
	result, err := c.Admin.Connect(wire.Connect{SQSize: 31, KATO: uint32(c.KATO.Milliseconds()), Attributes: c.attributes()}, c.data(wire.DynamicController))
	if err != nil {
		return fmt.Errorf("connecting the admin queue: %w", err)
	}
	c.ID = uint16(result)
	if err := c.authenticate(c.Admin, result); err != nil {
		return fmt.Errorf("on the admin queue: %w", err)
	}
	if _, err := c.Property(wire.RegCAP, true); err != nil {
		return err
	}
	if err := c.SetCC(6<<wire.CCIOSQES | 4<<wire.CCIOCQES | wire.CCEnable); err != nil {
		return err
	}
	if csts, err := c.Property(wire.RegCSTS, false); err != nil || csts&wire.CSTSReady == 0 {
		return fmt.Errorf("enabled, CSTS is %#x: %w", csts, err)
	}
	page, err := c.Identify(wire.CNSController, 0)
	if err != nil {
		return err
	}
	c.Ident = wire.ParseIdentifyController(page)
	if c.Ident.Type == wire.ControllerDiscovery || c.Queues == 0 {
		return nil
	}
	if c.ANA {
		if _, err := c.Log(wire.LogRequest{Page: wire.LogANA, Length: uint64(wire.ANALogSize(1, 1))}); err != nil {
			return err
		}
	}
	cqe, err := c.SetFeature(wire.FeatureQueues, uint32(c.Queues-1)<<16|uint32(c.Queues-1), nil)
	if err != nil {
		return err
	}
	for id := range min(c.Queues, int(cqe.Result&0xffff)+1) {
		if err := c.AddQueue(uint16(id + 1)); err != nil {
			return fmt.Errorf("connecting I/O queue %d: %w", id+1, err)
		}
	}
	return nil
}

// AddQueue connects one more I/O queue.
func (c *Controller) AddQueue(id uint16) error {
	q, err := Dial(c.Addr, c.Options)
	if err != nil {
		return err
	}
	q.InCapsule = max(int(c.Ident.IOCCSZ)*16-wire.SQESize, 0)
	result, err := q.Connect(wire.Connect{QID: id, SQSize: uint16(c.Depth - 1), Attributes: c.attributes()}, c.data(c.ID))
	if err == nil {
		err = c.authenticate(q, result)
	}
	if err != nil {
		q.Close()
		return err
	}
	c.IO = append(c.IO, q)
	return nil
}

// authenticate does so on a queue whose Connect asks for it, and which has a secret.
func (c *Controller) authenticate(q *Queue, result uint64) error {
	if result&wire.ConnectAuthRequired == 0 || c.Auth == nil {
		return nil
	}
	return c.Authenticate(q, *c.Auth)
}

// Authenticate proves on a queue who the host is, also again.
func (c *Controller) Authenticate(q *Queue, h auth.Host) error {
	h.Host, h.Subsys, h.ID = c.Host, c.Subsys, c.ID
	return q.Authenticate(&h)
}

// data is what the controller's queues connect with.
func (c *Controller) data(id uint16) wire.ConnectData {
	return wire.ConnectData{HostID: c.HostID, CNTLID: id, Subsys: c.Subsys, HostName: c.Host}
}

// Close ends all connections.
func (c *Controller) Close() {
	for _, q := range c.IO {
		q.Close()
	}
	if c.Admin != nil {
		select {
		case <-c.Admin.done:
		default:
			c.Admin.Conn.Close()
		}
	}
}

// Property reads a register.
func (c *Controller) Property(off uint32, wide bool) (uint64, error) {
	cmd := wire.SQE{}
	cmd.SetProperty(wire.FCPropertyGet, wire.Property{Wide: wide, Offset: off})
	cqe, err := c.Admin.Do(&cmd, nil, nil)
	return cqe.Result, err
}

// SetCC writes CC.
func (c *Controller) SetCC(cc uint32) error {
	cmd := wire.SQE{}
	cmd.SetProperty(wire.FCPropertySet, wire.Property{Offset: wire.RegCC, Value: uint64(cc)})
	_, err := c.Admin.Do(&cmd, nil, nil)
	return err
}

// Identify reads a page.
func (c *Controller) Identify(cns uint8, nsid uint32) ([]byte, error) {
	page := make([]byte, wire.IdentifySize)
	_, err := c.Admin.Do(&wire.SQE{Opcode: wire.OpIdentify, NSID: nsid, CDW10: uint32(cns)}, nil, page)
	return page, err
}

// Log reads n bytes of a log page.
func (c *Controller) Log(r wire.LogRequest) ([]byte, error) {
	b := make([]byte, r.Length)
	cmd := wire.SQE{}
	cmd.SetLogRequest(r)
	_, err := c.Admin.Do(&cmd, nil, b)
	return b, err
}

// SetFeature sets a feature.
func (c *Controller) SetFeature(id uint8, value uint32, data []byte) (wire.CQE, error) {
	return c.Admin.Do(&wire.SQE{Opcode: wire.OpSetFeatures, CDW10: uint32(id), CDW11: value}, data, nil)
}

// AwaitEvent posts an Asynchronous Event Request.
func (c *Controller) AwaitEvent() (*Sent, error) {
	return c.Admin.Send(&wire.SQE{Opcode: wire.OpAsyncEvent}, nil, nil)
}

// IOCommand is a command on blocks.
func IOCommand(op wire.Opcode, nsid uint32, lba uint64, blocks int) wire.SQE {
	return wire.SQE{Opcode: op, NSID: nsid, CDW10: uint32(lba), CDW11: uint32(lba >> 32), CDW12: uint32(blocks-1) & 0xffff}
}

// Read reads blocks of 512 bytes by an I/O queue.
func (q *Queue) Read(nsid uint32, lba uint64, b []byte) error {
	cmd := IOCommand(wire.OpRead, nsid, lba, len(b)/512)
	_, err := q.Do(&cmd, nil, b)
	return err
}

// Write writes blocks of 512 bytes.
func (q *Queue) Write(nsid uint32, lba uint64, b []byte) error {
	cmd := IOCommand(wire.OpWrite, nsid, lba, len(b)/512)
	_, err := q.Do(&cmd, b, nil)
	return err
}
