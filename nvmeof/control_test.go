package nvmeof

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// log reads a log page.
func readLog(t *testing.T, c *nvmetest.Controller, page uint8, n int) []byte {
	t.Helper()
	b, err := c.Log(wire.LogRequest{Page: page, Length: uint64(n)})
	if err != nil {
		t.Fatalf("log page %02xh: %v", page, err)
	}
	return b
}

func TestIdentify(t *testing.T) {
	r := newRig(t, Options{QueueDepth: 64, MaxQueues: 3})
	r.addNamespace(7, r.memoryBackend(r.memory))
	c := r.connect(func(c *nvmetest.Config) { c.Queues, c.Depth = 9, 64 })
	if len(c.IO) != 3 {
		t.Errorf("%d I/O queues were granted", len(c.IO))
	}
	id := c.Ident
	if id.Serial != "serial" || id.Model != "model" || id.Subsys != testNQN || id.CNTLID != c.ID || id.MDTS != 5 ||
		id.KAS == 0 || id.VWC&1 == 0 || id.IOCCSZ != (64+16384)/16 || id.CRDT[0] != 1 || id.MaxCmd != 64 || id.ANATT < 30 {
		t.Errorf("controller: %+v", id)
	}
	page, err := c.Identify(wire.CNSNamespace, 7)
	ns := wire.ParseIdentifyNamespace(page)
	if err != nil || ns.Size != testSize/512 || ns.BlockShift != 9 || ns.NGUID != [16]byte{0xbb, 7} || ns.ANAGroup != 1 || ns.NPWG != 7 {
		t.Errorf("namespace: %+v, %v", ns, err)
	}
	page, err = c.Identify(wire.CNSDescriptors, 7)
	if got := wire.ParseNamespaceID(page); err != nil || got.UUID != [16]byte{0xaa, 7} || got.NGUID != [16]byte{0xbb, 7} {
		t.Errorf("descriptors: %+v, %v", got, err)
	}
	for after, want := range map[uint32][]uint32{0: {1, 7}, 1: {7}, 7: nil} {
		page, err := c.Identify(wire.CNSActiveList, after)
		if got := wire.ParseIDList(page); err != nil || !slices.Equal(got, want) {
			t.Errorf("namespaces after %d: %v, %v", after, got, err)
		}
	}
	page, err = c.Identify(wire.CNSControllers, 0)
	if got := wire.ParseControllerList(page); err != nil || !slices.Equal(got, []uint16{c.ID}) {
		t.Errorf("controllers: %v, %v", got, err)
	}
	for _, cns := range []uint8{wire.CNSNamespaceCSI, wire.CNSControllerCSI, wire.CNSActiveListCSI, wire.CNSNamespaceCommon, wire.CNSCommandSets, wire.CNSAttached} {
		if _, err := c.Identify(cns, 1); err != nil {
			t.Errorf("CNS %02xh: %v", cns, err)
		}
	}
	page, err = c.Identify(wire.CNSNamespace, 3)
	if err != nil || wire.ParseIdentifyNamespace(page).Capacity != 0 {
		t.Errorf("a namespace that is none: %v", err)
	}
	_, err = c.Identify(wire.CNSDescriptors, 3)
	wantStatus(t, "descriptors of none", err, wire.InvalidNamespace|wire.DNR)
	_, err = c.Identify(wire.CNSNamespace, 5000)
	wantStatus(t, "namespace 5000", err, wire.InvalidNamespace|wire.DNR)
	_, err = c.Identify(0x77, 1)
	wantStatus(t, "CNS 77h", err, wire.InvalidField|wire.DNR)
	_, err = c.Admin.Do(&wire.SQE{Opcode: wire.OpIdentify, NSID: 1}, nil, make([]byte, 8192))
	wantStatus(t, "a page of 8 KiB", err, wire.InvalidSGLLength|wire.DNR)
}

func TestLogPages(t *testing.T) {
	r := newRig(t, Options{})
	c := r.connect()
	if err := c.IO[0].Write(1, 0, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, "reading behind the end", c.IO[0].Read(1, testSize/512, make([]byte, 512)), wire.LBAOutOfRange|wire.DNR)
	smart := wire.ParseSMART(readLog(t, c, wire.LogSMART, wire.SMARTSize))
	if smart.Writes != 1 || smart.DataWrite != 1 || smart.Reads != 0 || smart.Spare != 100 || smart.ErrorEntries != 1 {
		t.Errorf("SMART: %+v", smart)
	}
	e := wire.ParseErrorEntry(readLog(t, c, wire.LogErrors, 64))
	if e.Count != 1 || e.QID != 1 || e.LBA != testSize/512 || e.NSID != 1 || e.Status != wire.LBAOutOfRange|wire.DNR {
		t.Errorf("error log: %+v", e)
	}
	effects := readLog(t, c, wire.LogEffects, wire.EffectsSize)
	if binary.LittleEndian.Uint32(effects[1024+4*int(wire.OpWrite):]) != 3 {
		t.Error("effects log: a write has none")
	}
	pages := readLog(t, c, wire.LogPages, wire.PagesSize)
	for page := range wire.PagesSize / 4 {
		n := map[int]int{wire.LogPages: 1024, wire.LogSMART: 512, wire.LogFirmware: 512}[page]
		_, err := c.Log(wire.LogRequest{Page: uint8(page), Length: uint64(max(n, 64))})
		if supported := pages[4*page]&1 != 0; supported != (err == nil) {
			t.Errorf("log page %02xh: said to be there: %v; read: %v", page, supported, err)
		}
	}
	log, err := wire.ParseANALog(readLog(t, c, wire.LogANA, 4096))
	if err != nil || len(log.Groups) != 1 || log.Groups[0].State != wire.ANAOptimized || !slices.Equal(log.Groups[0].Namespaces, []uint32{1}) {
		t.Errorf("ANA log: %+v, %v", log, err)
	}
	// nvme-cli reads as much as there could be, in pieces.
	n := uint64(wire.ANALogSize(int(c.Ident.ANAGroups), int(c.Ident.MNAN)))
	if _, err := c.Log(wire.LogRequest{Page: wire.LogANA, Length: n % 4096, Offset: n - n%4096}); err != nil {
		t.Errorf("the end of the ANA log: %v", err)
	}
	_, err = c.Log(wire.LogRequest{Page: wire.LogSMART, Length: 512, Offset: 513})
	wantStatus(t, "an odd offset", err, wire.InvalidField|wire.DNR)
	_, err = c.Log(wire.LogRequest{Page: wire.LogSMART, Length: 512, Offset: 1 << 40})
	wantStatus(t, "an offset beyond", err, wire.InvalidField|wire.DNR)
	cmd := wire.SQE{}
	cmd.SetLogRequest(wire.LogRequest{Page: wire.LogSMART, Length: 1 << 33})
	_, err = c.Admin.Do(&cmd, nil, make([]byte, 4096))
	wantStatus(t, "a log of 8 GiB", err, wire.InvalidField|wire.DNR)
	part, err := c.Log(wire.LogRequest{Page: wire.LogSMART, Length: 8, Offset: 32})
	if err != nil || part[0] != 0 {
		t.Errorf("part of a log: %v, %v", part, err)
	}
}

func TestFeatures(t *testing.T) {
	r := newRig(t, Options{MaxQueues: 4})
	c := r.connect()
	get := func(id uint8, value uint32) (uint64, error) {
		cqe, err := c.Admin.Do(&wire.SQE{Opcode: wire.OpGetFeatures, CDW10: uint32(id), CDW11: value}, nil, nil)
		return cqe.Result, err
	}
	cqe, err := c.SetFeature(wire.FeatureQueues, 99<<16|2, nil)
	if err != nil || cqe.Result != 2<<16|2 {
		t.Errorf("asked for 3 and 100 queues: %#x, %v", cqe.Result, err)
	}
	if got, err := get(wire.FeatureQueues, 0); err != nil || got != 2<<16|2 {
		t.Errorf("number of queues: %#x, %v", got, err)
	}
	if _, err := c.SetFeature(wire.FeatureKeepAlive, 5000, nil); err != nil {
		t.Error(err)
	}
	if got, err := get(wire.FeatureKeepAlive, 0); err != nil || got != 5000 {
		t.Errorf("keep alive: %d, %v", got, err)
	}
	if _, err := c.SetFeature(wire.FeatureHostBehavior, 0, make([]byte, wire.HostBehaviorSize)); err != nil {
		t.Error(err)
	}
	_, err = c.SetFeature(wire.FeatureHostBehavior, 0, make([]byte, 100))
	wantStatus(t, "host behavior of 100 bytes", err, wire.InvalidField|wire.DNR)
	_, err = c.SetFeature(wire.FeatureCache, 0, nil)
	wantStatus(t, "switching the cache off", err, wire.FeatureNotChangeable|wire.DNR)
	_, err = get(0x70, 0)
	wantStatus(t, "an unknown feature", err, wire.InvalidField|wire.DNR)
	id := make([]byte, 16)
	if _, err := c.Admin.Do(&wire.SQE{Opcode: wire.OpGetFeatures, CDW10: wire.FeatureHostID, CDW11: 1}, nil, id); err != nil || !bytes.Equal(id, c.HostID[:]) {
		t.Errorf("host identifier: %x, %v", id, err)
	}
	_, err = c.Admin.Do(&wire.SQE{Opcode: 0xc5}, nil, nil)
	wantStatus(t, "an unknown command", err, wire.InvalidOpcode|wire.DNR)
	_, err = c.Admin.Do(&wire.SQE{Opcode: wire.OpFabrics, FCType: wire.FCAuthSend}, make([]byte, 64), nil)
	wantStatus(t, "authentication that was not asked for", err, wire.InvalidOpcode|wire.DNR)
}

func TestAbort(t *testing.T) {
	r := newRig(t, Options{})
	c := r.connect()
	event, err := c.AwaitEvent()
	if err != nil {
		t.Fatal(err)
	}
	cqe, err := c.Admin.Do(&wire.SQE{Opcode: wire.OpAbort, CDW10: uint32(event.CID) << 16}, nil, nil)
	if err != nil || cqe.Result != 0 {
		t.Errorf("aborting: %v, %v", cqe.Result, err)
	}
	if _, err := event.Wait(); err != wire.AbortRequested {
		t.Errorf("the request: %v", err)
	}
	for _, what := range []uint32{77 << 16, 77<<16 | 1, 77<<16 | 9} {
		cqe, err = c.Admin.Do(&wire.SQE{Opcode: wire.OpAbort, CDW10: what}, nil, nil)
		if err != nil || cqe.Result != 1 {
			t.Errorf("aborting what is not there: %v, %v", cqe.Result, err)
		}
	}
}

// TestAbortHeld: what a gate keeps can be aborted, and the rest goes on.
func TestAbortHeld(t *testing.T) {
	eachLoop(t, func(t *testing.T, opt Options) {
		r := newRig(t, opt)
		c := r.connect()
		r.ns.Hold()
		var sent []*nvmetest.Sent
		for range 3 {
			s, err := c.IO[0].Send(&wire.SQE{Opcode: wire.OpFlush, NSID: 1}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			sent = append(sent, s)
		}
		eventually(t, "they are held", func() bool { return r.ns.Stats().Held == 3 })
		cqe, err := c.Admin.Do(&wire.SQE{Opcode: wire.OpAbort, CDW10: uint32(sent[1].CID)<<16 | 1}, nil, nil)
		if err != nil || cqe.Result != 0 {
			t.Errorf("aborting: %v, %v", cqe.Result, err)
		}
		_, err = sent[1].Wait()
		wantStatus(t, "what was aborted", err, wire.AbortRequested)
		r.ns.Release()
		for _, i := range []int{0, 2} {
			if _, err := sent[i].Wait(); err != nil {
				t.Errorf("command %d: %v", i, err)
			}
		}
	})
}

// TestEvents: each is told once until its log was read, waits for a request, and
// comes to those who asked for it.
func TestEvents(t *testing.T) {
	r := newRig(t, Options{})
	c := r.connect()
	deaf := r.connect()
	deafEvent, err := deaf.AwaitEvent()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetFeature(wire.FeatureAsyncEvents, wire.OAESNamespace|wire.OAESANA, nil); err != nil {
		t.Fatal(err)
	}
	await := func(want uint64) {
		t.Helper()
		event, err := c.AwaitEvent()
		if err != nil {
			t.Fatal(err)
		}
		if cqe, err := event.Wait(); err != nil || cqe.Result != want {
			t.Fatalf("event %#x, %v; want %#x", cqe.Result, err, want)
		}
	}
	none := func(sent *nvmetest.Sent) {
		t.Helper()
		if _, err := c.Identify(wire.CNSController, 0); err != nil { // whatever comes has come before it
			t.Fatal(err)
		}
		select {
		case cqe := <-sent.Done():
			t.Fatalf("event %#x", cqe.Result)
		default:
		}
	}
	// It happens while no request is there.
	r.addNamespace(2, r.memoryBackend(r.memory))
	await(wire.EventNamespace)
	if err := r.ns.Resize(testSize / 2); err != nil {
		t.Fatal(err)
	}
	next, err := c.AwaitEvent()
	if err != nil {
		t.Fatal(err)
	}
	none(next)
	if got := wire.ParseIDList(readLog(t, c, wire.LogChangedNS, 4096)); !slices.Equal(got, []uint32{2, 1}) {
		t.Errorf("changed: %v", got)
	}
	if cqe, err := next.Wait(); err != nil || cqe.Result != wire.EventNamespace {
		t.Errorf("after the log was read: %#x, %v", cqe.Result, err)
	}
	page, err := c.Identify(wire.CNSNamespace, 1)
	if n := wire.ParseIdentifyNamespace(page); err != nil || n.Size != testSize/2/512 {
		t.Errorf("after the resize: %d blocks, %v", n.Size, err)
	}
	wantStatus(t, "behind the new end", c.IO[0].Read(1, testSize/2/512, make([]byte, 512)), wire.LBAOutOfRange|wire.DNR)
	readLog(t, c, wire.LogChangedNS, 4096)
	if err := r.subsys.RemoveNamespace(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	await(wire.EventNamespace)
	wantStatus(t, "reading what is removed", c.IO[0].Read(2, 0, make([]byte, 512)), wire.InvalidNamespace|wire.DNR)
	if err := r.subsys.SetANA(1, wire.ANANonOptimized); err != nil {
		t.Fatal(err)
	}
	await(wire.EventANA)
	select {
	case cqe := <-deafEvent.Done():
		t.Errorf("event %#x for a host that wants none", cqe.Result)
	default:
	}
	for range maxEventRequests {
		if _, err := c.AwaitEvent(); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.Admin.Do(&wire.SQE{Opcode: wire.OpAsyncEvent}, nil, nil)
	wantStatus(t, "one request too many", err, wire.AERLimitExceeded|wire.DNR)
}

func TestDiscovery(t *testing.T) {
	r := newRig(t, Options{})
	second := r.listen("[::1]:0")
	hidden, err := r.target.AddSubsystem(SubsystemConfig{NQN: "nqn.2026-01.org.example:hidden", Hosts: []string{"nqn.2026-01.org.example:friend"}})
	if err != nil {
		t.Fatal(err)
	}
	d := r.connect(func(c *nvmetest.Config) { c.Subsys = wire.DiscoveryNQN })
	if d.Ident.Type != wire.ControllerDiscovery || d.Ident.OAES&wire.OAESDiscovery == 0 {
		t.Errorf("controller: %+v", d.Ident)
	}
	read := func() wire.DiscoveryLog {
		t.Helper()
		log, err := wire.ParseDiscoveryLog(readLog(t, d, wire.LogDiscovery, 32<<10))
		if err != nil {
			t.Fatal(err)
		}
		return log
	}
	log := read()
	host, port, _ := net.SplitHostPort(r.addr)
	_, port6, _ := net.SplitHostPort(second)
	if len(log.Entries) != 4 {
		t.Fatalf("%+v", log)
	}
	for i, want := range []wire.DiscoveryEntry{
		{Kind: wire.KindDiscovery, Family: wire.FamilyIPv4, Service: port, Address: host, Subsys: wire.DiscoveryNQN},
		{Kind: wire.KindDiscovery, Family: wire.FamilyIPv6, Service: port6, Address: "::1", Subsys: wire.DiscoveryNQN},
		{Kind: wire.KindNVM, Family: wire.FamilyIPv4, Service: port, Address: host, Subsys: testNQN},
		{Kind: wire.KindNVM, Family: wire.FamilyIPv6, Service: port6, Address: "::1", Subsys: testNQN},
	} {
		got := log.Entries[i]
		if got.Kind != want.Kind || got.Family != want.Family || got.Service != want.Service || got.Address != want.Address || got.Subsys != want.Subsys || got.Transport != wire.TransportTCP {
			t.Errorf("entry %d: %+v, want %+v", i, got, want)
		}
	}
	// In pieces, as Linux reads it.
	head, err := d.Log(wire.LogRequest{Page: wire.LogDiscovery, Length: 1024})
	if err != nil || binary.LittleEndian.Uint64(head[8:]) != 4 {
		t.Errorf("header: %v", err)
	}
	one, err := d.Log(wire.LogRequest{Page: wire.LogDiscovery, Length: 1024, Offset: 1024 + 2*1024})
	if err != nil || !strings.HasPrefix(string(one[256:]), testNQN) {
		t.Errorf("third entry: %v", err)
	}
	if _, err := d.SetFeature(wire.FeatureAsyncEvents, wire.OAESDiscovery, nil); err != nil {
		t.Fatal(err)
	}
	event, err := d.AwaitEvent()
	if err != nil {
		t.Fatal(err)
	}
	if err := hidden.AllowHost(nvmetest.HostNQN); err != nil {
		t.Fatal(err)
	}
	if cqe, err := event.Wait(); err != nil || cqe.Result != wire.EventDiscovery {
		t.Errorf("event %#x, %v", cqe.Result, err)
	}
	if now := read(); len(now.Entries) != 6 || now.Generation == log.Generation {
		t.Errorf("after the change: %d entries, generation %d", len(now.Entries), now.Generation)
	}
	_, err = d.Identify(wire.CNSActiveList, 0)
	wantStatus(t, "namespaces of a discovery controller", err, wire.InvalidField|wire.DNR)
	if err := d.AddQueue(1); err == nil {
		t.Error("a discovery controller gave an I/O queue")
	}
}

// TestReset: disabling ends the I/O queues, and the controller is ready until they
// are gone; then it may be enabled anew.
func TestReset(t *testing.T) {
	r := newRig(t, Options{})
	c := r.connect(func(c *nvmetest.Config) { c.Queues = 2 })
	for range 2 * maxEventRequests { // a reset forgets them
		if _, err := c.AwaitEvent(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.SetCC(6<<16 | 4<<20); err != nil {
		t.Fatal(err)
	}
	eventually(t, "RDY is 0", func() bool {
		csts, err := c.Property(wire.RegCSTS, false)
		if err != nil {
			t.Fatal(err)
		}
		return csts&wire.CSTSReady == 0
	})
	for _, q := range c.IO {
		<-q.Done()
	}
	_, err := c.Identify(wire.CNSController, 0)
	wantStatus(t, "Identify of a disabled controller", err, wire.SequenceError|wire.DNR)
	if err := c.AddQueue(1); err == nil {
		t.Error("a disabled controller gave an I/O queue")
	}
	if err := c.SetCC(6<<16 | 4<<20 | wire.CCEnable); err != nil {
		t.Fatal(err)
	}
	event, err := c.AwaitEvent()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddQueue(1); err != nil {
		t.Fatal(err)
	}
	select {
	case cqe := <-event.Done():
		t.Errorf("an event request after the reset: %v", cqe.Status)
	default:
	}
	if err := c.IO[len(c.IO)-1].Read(1, 0, make([]byte, 512)); err != nil {
		t.Error(err)
	}
	if err := c.SetCC(6<<16 | 4<<20 | wire.CCEnable | wire.CCShutdownAny); err != nil {
		t.Fatal(err)
	}
	if csts, err := c.Property(wire.RegCSTS, false); err != nil || csts&wire.CSTSShutdownMask != wire.CSTSShutdownDone {
		t.Errorf("after a shutdown CSTS is %#x, %v", csts, err)
	}
}

func TestKeepAlive(t *testing.T) {
	r := newRig(t, Options{})
	c := r.connect(func(c *nvmetest.Config) { c.KATO = 500 * time.Millisecond; c.Queues = 2 })
	for range 15 { // longer than it lives without
		time.Sleep(100 * time.Millisecond)
		if _, err := c.Admin.Do(&wire.SQE{Opcode: wire.OpKeepAlive}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	<-c.Admin.Done()
	for _, q := range c.IO {
		<-q.Done()
	}
	eventually(t, "the controller is gone", func() bool { return r.subsys.Controllers() == 0 })
}
