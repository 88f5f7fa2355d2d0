package nvmeof

import (
	"math/bits"
	"slices"
	"time"

	"github.com/swapback/swapback/nvmeof/wire"
)

const firmware = "1"

// identify answers Identify (Base 5.17).
func (q *queue) identify(c *command) {
	cns, csi := uint8(c.sqe.CDW10), uint8(c.sqe.CDW11>>24)
	s := q.ctrl.subsys
	if cns == wire.CNSController {
		q.answerPage(c, q.identifyController().Page())
		return
	}
	if q.ctrl.discovery() {
		q.fail(c, wire.InvalidField|wire.DNR)
		return
	}
	zeroes := func() []byte { return make([]byte, wire.IdentifySize) }
	switch cns {
	case wire.CNSActiveList, wire.CNSActiveListCSI:
		if c.sqe.NSID >= allNamespaces-1 {
			q.fail(c, wire.InvalidNamespace|wire.DNR)
			return
		}
		if csi != 0 && cns == wire.CNSActiveListCSI {
			q.answerPage(c, zeroes())
			return
		}
		q.answerPage(c, wire.IDList(s.namespaceIDs(c.sqe.NSID)))
	case wire.CNSControllers, wire.CNSAttached:
		q.identifyControllers(c, cns)
	case wire.CNSControllerCSI, wire.CNSCommandSets:
		if csi != 0 {
			q.fail(c, wire.InvalidField|wire.DNR)
			return
		}
		page := zeroes()
		if cns == wire.CNSCommandSets {
			page[0] = 1 // the NVM command set, alone
		}
		q.answerPage(c, page)
	case wire.CNSNamespace, wire.CNSDescriptors, wire.CNSNamespaceCSI, wire.CNSNamespaceCommon:
		q.identifyNamespace(c, cns, csi)
	default:
		q.fail(c, wire.InvalidField|wire.DNR)
	}
}

func (q *queue) identifyNamespace(c *command, cns, csi uint8) {
	switch n := q.ctrl.subsys.Namespace(c.sqe.NSID); {
	case n == nil && (c.sqe.NSID == 0 || c.sqe.NSID > maxNamespaces || cns == wire.CNSDescriptors || cns == wire.CNSNamespaceCommon):
		q.fail(c, wire.InvalidNamespace|wire.DNR)
	case n == nil: // inactive: all zeroes (Base 5.17.2.1)
		q.answerPage(c, make([]byte, wire.IdentifySize))
	case cns == wire.CNSNamespace:
		q.answerPage(c, n.identify().Page())
	case cns == wire.CNSDescriptors:
		q.answerPage(c, n.descriptors().Page())
	case cns == wire.CNSNamespaceCommon:
		q.answerPage(c, n.common().Page())
	case csi != 0:
		q.fail(c, wire.InvalidField|wire.DNR)
	default: // nothing beyond CNS 00h: no protection information
		q.answerPage(c, make([]byte, wire.IdentifySize))
	}
}

func (q *queue) identifyControllers(c *command, cns uint8) {
	s := q.ctrl.subsys
	if cns == wire.CNSAttached && s.Namespace(c.sqe.NSID) == nil {
		q.fail(c, wire.InvalidNamespace|wire.DNR)
		return
	}
	var ids []uint16
	for _, o := range s.listControllers() {
		if o.id >= uint16(c.sqe.CDW10>>16) {
			ids = append(ids, o.id)
		}
	}
	slices.Sort(ids)
	q.answerPage(c, wire.ControllerList(ids))
}

func (q *queue) identifyController() wire.IdentifyController {
	s, opt := q.ctrl.subsys, &q.target.opt
	id := wire.IdentifyController{
		Serial: s.config.Serial, Model: s.config.Model, Firmware: firmware,
		CNTLID: q.ctrl.id, Version: wire.Version, Type: wire.ControllerIO,
		MDTS: uint8(bits.TrailingZeros(uint(opt.MaxData / 4096))),
		AERL: maxEventRequests - 1, ELPE: errorEntries - 1, FRMW: 3, // one slot, read-only
		LPA: wire.LPAEffects | wire.LPAExtended | wire.LPAPages,
		KAS: 10, SQES: 0x66, CQES: 0x44,
		SGLS: wire.SGLSSupported | wire.SGLSOffset, Subsys: s.config.NQN,
		IOCCSZ: uint32(wire.SQESize+opt.InCapsule) / 16, IORCSZ: wire.CQESize / 16, MSDBD: 1,
	}
	if q.ctrl.discovery() {
		id.Model, id.Type = "swapback discovery", wire.ControllerDiscovery
		id.OAES, id.MaxCmd = wire.OAESDiscovery, adminDepth
		id.LPA = wire.LPAExtended | wire.LPAPages
		id.IOCCSZ, id.IORCSZ = 4, 1
		return id
	}
	for i, d := range opt.RetryDelays {
		id.CRDT[i] = uint16(d / (100 * time.Millisecond))
	}
	id.CMIC = wire.CMICMultiController | wire.CMICANA
	id.OAES = wire.OAESNamespace | wire.OAESANA
	id.WarnTemp, id.CritTemp = 273+70, 273+80
	id.ANATT = uint8(opt.ANATransition / time.Second)
	id.ANACAP = wire.ANACAPOptimized | wire.ANACAPNonOpt | wire.ANACAPInaccess | wire.ANACAPLoss | wire.ANACAPTransition
	id.ANAGroupMax, id.ANAGroups = maxGroups, maxGroups
	id.MaxCmd = uint16(opt.QueueDepth)
	id.NN, id.MNAN = maxNamespaces, maxNamespaces
	id.ONCS = wire.ONCSCompare | wire.ONCSDSM | wire.ONCSWriteZeroes | wire.ONCSReservation
	id.VWC = wire.VWCPresent | wire.VWCNoBroadcast
	return id
}
