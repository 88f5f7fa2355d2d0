package nvmeof

import (
	"slices"
	"time"

	"github.com/swapback/swapback/nvmeof/wire"
)

// adminCommand carries out a command of an admin queue. None of them looks at a
// gate. Their data is made on the heap: they are rare.
func (q *queue) adminCommand(c *command) {
	q.heard = time.Now()
	if c.sqe.Transfer() == wire.TransferToCtrl && c.data == nil && c.sqe.SGL.Type == wire.SGLTransport && c.sqe.SGL.Length > 0 {
		if c.sqe.SGL.Length > uint32(q.target.opt.MaxData) {
			q.fail(c, wire.InvalidField|wire.DNR)
			return
		}
		q.askForData(c, c.sqe.SGL.Length)
		return
	}
	if c.sqe.Opcode == wire.OpFabrics {
		q.fabricsCommand(c)
		return
	}
	if ready := q.ctrl.status()&wire.CSTSReady != 0; !ready {
		q.fail(c, wire.SequenceError|wire.DNR)
		return
	}
	switch c.sqe.Opcode {
	case wire.OpKeepAlive:
		q.answer(c, wire.Success, 0)
	case wire.OpIdentify:
		q.identify(c)
	case wire.OpGetLogPage:
		q.getLog(c)
	case wire.OpSetFeatures:
		q.setFeature(c)
	case wire.OpGetFeatures:
		q.getFeature(c)
	case wire.OpAsyncEvent:
		q.awaitEvent(c)
	case wire.OpAbort:
		q.abort(c)
	default:
		q.fail(c, wire.InvalidOpcode|wire.DNR)
	}
}

// answerPage sends as much of a page as the host has asked for.
func (q *queue) answerPage(c *command, page []byte) {
	if c.sqe.SGL.Type != wire.SGLTransport {
		q.fail(c, wire.InvalidSGLType|wire.DNR)
		return
	}
	if int64(c.sqe.SGL.Length) > int64(len(page)) || c.sqe.SGL.Length == 0 {
		q.fail(c, wire.InvalidSGLLength|wire.DNR)
		return
	}
	q.answerData(c, page[:c.sqe.SGL.Length])
}

// awaitEvent keeps an Asynchronous Event Request until there is something to tell.
// It takes no entry of the queue meanwhile.
func (q *queue) awaitEvent(c *command) {
	if len(q.aers) == maxEventRequests {
		q.fail(c, wire.AERLimitExceeded|wire.DNR)
		return
	}
	q.aers = append(q.aers, c.sqe.CID)
	q.release(c.index)
	q.tellEvents()
}

// tellEvents completes requests for what has happened.
func (q *queue) tellEvents() {
	for q.state == stateAdmin && len(q.aers) > 0 {
		result, ok := q.ctrl.takeEvent()
		if !ok {
			return
		}
		q.putResponse(q.aers[0], wire.Success, uint64(result))
		q.aers = slices.Delete(q.aers, 0, 1)
	}
}

// abort ends an Asynchronous Event Request, or has an I/O queue end a command that it
// holds. What is at a disk is not aborted, which is what the result says and the
// specification allows (Base 5.1).
func (q *queue) abort(c *command) {
	sqid, cid := uint16(c.sqe.CDW10), uint16(c.sqe.CDW10>>16)
	if sqid == 0 {
		i := slices.Index(q.aers, cid)
		if i < 0 {
			q.answer(c, wire.Success, notAborted)
			return
		}
		q.aers = slices.Delete(q.aers, i, i+1)
		q.putResponse(cid, wire.AbortRequested, 0)
		q.answer(c, wire.Success, 0)
		return
	}
	q.ctrl.mu.Lock()
	io := q.ctrl.queues[sqid]
	q.ctrl.mu.Unlock()
	if io == nil {
		q.answer(c, wire.Success, notAborted)
		return
	}
	c.phase = phaseOthers
	io.post(mail{abort: &abort{cid: cid, admin: q, command: c.index}})
}

// setFeature takes those features that mean something here (Base 5.27).
func (q *queue) setFeature(c *command) {
	if c.sqe.CDW10&(1<<31) != 0 {
		q.fail(c, wire.FeatureNotSaveable|wire.DNR)
		return
	}
	v := c.sqe.CDW11
	switch uint8(c.sqe.CDW10) {
	case wire.FeatureQueues:
		if v&0xffff == 0xffff || v>>16 == 0xffff {
			q.fail(c, wire.InvalidField|wire.DNR)
			return
		}
		n := min(v&0xffff, v>>16, uint32(q.target.opt.MaxQueues-1))
		q.ctrl.grant(uint16(n) + 1)
		q.answer(c, wire.Success, uint64(n<<16|n))
	case wire.FeatureAsyncEvents:
		q.ctrl.enableEvents(v)
		q.answer(c, wire.Success, 0)
	case wire.FeatureKeepAlive:
		q.ctrl.kato = time.Duration(v) * time.Millisecond
		q.answer(c, wire.Success, 0)
	case wire.FeatureHostBehavior:
		// Retry delays are in every status that they fit, whether the host says that
		// it heeds them or not: one that does not know the field ignores it.
		if len(c.data) != wire.HostBehaviorSize {
			q.fail(c, wire.InvalidField|wire.DNR)
			return
		}
		q.answer(c, wire.Success, 0)
	case wire.FeatureReservationMask:
		q.setReservationMask(c)
	case wire.FeatureHostID:
		q.fail(c, wire.SequenceError|wire.DNR) // Connect has set it
	case wire.FeatureCache:
		q.fail(c, wire.FeatureNotChangeable|wire.DNR)
	default:
		q.fail(c, wire.InvalidField|wire.DNR)
	}
}

func (c *controller) grant(n uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.granted = n
}

func (c *controller) enableEvents(mask uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events.enabled = mask & (wire.OAESNamespace | wire.OAESANA | wire.OAESDiscovery)
}

// getFeature tells the present value of a feature; there are no others.
func (q *queue) getFeature(c *command) {
	q.ctrl.mu.Lock()
	granted, enabled := q.ctrl.granted, q.ctrl.events.enabled
	q.ctrl.mu.Unlock()
	switch uint8(c.sqe.CDW10) {
	case wire.FeatureQueues:
		n := uint64(granted - 1)
		q.answer(c, wire.Success, n<<16|n)
	case wire.FeatureAsyncEvents:
		q.answer(c, wire.Success, uint64(enabled))
	case wire.FeatureKeepAlive:
		q.answer(c, wire.Success, uint64(q.ctrl.kato.Milliseconds()))
	case wire.FeatureCache:
		q.answer(c, wire.Success, 1)
	case wire.FeatureReservationMask:
		q.getReservationMask(c)
	case wire.FeatureHostID:
		if c.sqe.CDW11&1 == 0 { // over Fabrics an identifier has 128 bits
			q.fail(c, wire.InvalidField|wire.DNR)
			return
		}
		q.answerPage(c, q.ctrl.host.id[:])
	default:
		q.fail(c, wire.InvalidField|wire.DNR)
	}
}

// getLog answers Get Log Page (Base 5.16). It returns what there is of the length
// asked for, and zeroes behind it.
func (q *queue) getLog(c *command) {
	r := c.sqe.LogRequest()
	if r.Length > uint64(q.target.opt.MaxData) || uint64(c.sqe.SGL.Length) != r.Length {
		q.fail(c, wire.InvalidField|wire.DNR)
		return
	}
	page := q.logPage(r)
	if page == nil {
		q.fail(c, wire.InvalidLogPage|wire.DNR)
		return
	}
	if r.Offset%4 != 0 || r.Offset > uint64(len(page)) || r.Index {
		q.fail(c, wire.InvalidField|wire.DNR)
		return
	}
	part := make([]byte, r.Length)
	copy(part, page[r.Offset:])
	q.answerPage(c, part)
	if !r.Retain {
		q.ctrl.logRead(r.Page)
		q.tellEvents()
	}
}

// logPage makes a whole log page; nil: there is no such page.
func (q *queue) logPage(r wire.LogRequest) []byte {
	if q.ctrl.discovery() {
		switch r.Page {
		case wire.LogPages:
			return wire.SupportedPages(wire.LogPages, wire.LogErrors, wire.LogDiscovery)
		case wire.LogErrors:
			return q.ctrl.errorPage()
		case wire.LogDiscovery:
			addr := q.localAddr().AddrPort().Addr()
			return q.target.discoveryLog(q.ctrl.host.name, addr).Append(nil)
		}
		return nil
	}
	switch r.Page {
	case wire.LogPages:
		return wire.SupportedPages(wire.LogPages, wire.LogErrors, wire.LogSMART, wire.LogFirmware, wire.LogChangedNS, wire.LogEffects, wire.LogANA, wire.LogReservation)
	case wire.LogErrors:
		return q.ctrl.errorPage()
	case wire.LogSMART:
		return q.ctrl.health().Append(nil)
	case wire.LogFirmware:
		page := make([]byte, wire.FirmwareSize)
		page[0] = 1 // the active slot
		copy(page[8:16], firmware)
		return page
	case wire.LogChangedNS:
		return wire.IDList(q.ctrl.takeChanged(r.Retain))
	case wire.LogEffects:
		return wire.Effects(
			[]wire.Opcode{wire.OpGetLogPage, wire.OpIdentify, wire.OpAbort, wire.OpSetFeatures, wire.OpGetFeatures, wire.OpAsyncEvent, wire.OpKeepAlive},
			[]wire.Opcode{wire.OpFlush, wire.OpRead, wire.OpCompare, wire.OpResvRegister, wire.OpResvReport, wire.OpResvAcquire, wire.OpResvRelease},
			[]wire.Opcode{wire.OpWrite, wire.OpWriteZeroes, wire.OpDSM})
	case wire.LogReservation:
		return q.ctrl.nextNotice(r.Retain || r.Offset > 0).Append(nil)
	case wire.LogANA:
		// As long as it can get: nvme-cli reads so much, piece by piece.
		page := make([]byte, 0, wire.ANALogSize(maxGroups, maxNamespaces))
		page = q.ctrl.subsys.anaLog(r.Field&wire.ANAGroupsOnly != 0).Append(page)
		return page[:cap(page)]
	}
	return nil
}

// health is the SMART log of the subsystem. There is no wear to tell of; the disks
// below have their own.
func (c *controller) health() wire.SMART {
	log := wire.SMART{Temperature: 273 + 25, Spare: 100, SpareLimit: 10}
	for _, id := range c.subsys.namespaceIDs(0) {
		n := c.subsys.Namespace(id)
		if n == nil {
			continue
		}
		s := n.Stats()
		log.Reads += s.Reads
		log.Writes += s.Writes
		log.DataRead += s.ReadBytes
		log.DataWrite += s.WriteBytes
	}
	const unit = 512 * 1000
	log.DataRead = (log.DataRead + unit - 1) / unit
	log.DataWrite = (log.DataWrite + unit - 1) / unit
	c.mu.Lock()
	log.ErrorEntries = c.errors.count
	c.mu.Unlock()
	return log
}
