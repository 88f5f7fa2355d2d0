package nvmeof

import "github.com/swapback/swapback/nvmeof/wire"

// event is something that a host may have asked to be told of.
type event uint8

const (
	eventNamespace event = iota
	eventANA
	eventDiscovery
	eventReservation
	eventCount
)

// events are what completes the request, what enables it, and which log page tells
// more.
var events = [eventCount]struct {
	result uint32
	enable uint32
	page   uint8
}{
	eventNamespace: {wire.EventNamespace, wire.OAESNamespace, wire.LogChangedNS},
	eventANA:       {wire.EventANA, wire.OAESANA, wire.LogANA},
	eventDiscovery: {wire.EventDiscovery, wire.OAESDiscovery, wire.LogDiscovery},
	// Which notices there are is for FeatureReservationMask to say.
	eventReservation: {wire.EventReservation, 0, wire.LogReservation},
}

// maxEventRequests is how many Asynchronous Event Requests a host may have open.
const maxEventRequests = 4

// eventSet is what a controller has to tell (Base 5.2). An event waits until there
// is a request to complete, and is told once: not again before its log page was
// read. It is guarded by the controller's mu.
type eventSet struct {
	enabled uint32 // Asynchronous Event Configuration
	pending [eventCount]bool
	told    [eventCount]bool
	changed []uint32 // namespaces, ascending not needed; see changedList
	notices notices
}

// notify has the admin queue tell of an event, if the host wants to hear of it.
func (c *controller) notify(e event) {
	c.mu.Lock()
	wanted := events[e].enable == 0 || c.events.enabled&events[e].enable != 0
	if wanted {
		c.events.pending[e] = true
	}
	admin := c.admin
	c.mu.Unlock()
	if wanted && admin != nil {
		admin.wake()
	}
}

// namespaceChanged adds to the list of what has changed, and tells.
func (c *controller) namespaceChanged(id uint32) {
	c.mu.Lock()
	c.events.addChanged(id)
	c.mu.Unlock()
	c.notify(eventNamespace)
}

func (s *eventSet) addChanged(id uint32) {
	for _, have := range s.changed {
		if have == id || have == allNamespaces {
			return
		}
	}
	if len(s.changed) == wire.IdentifySize/4 {
		s.changed = []uint32{allNamespaces} // more than the page holds (Base 5.16.1.5)
		return
	}
	s.changed = append(s.changed, id)
}

const allNamespaces = 0xffffffff

// takeEvent is the next event to tell; none when there is none. Only call it with
// a request to complete.
func (c *controller) takeEvent() (result uint32, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.events
	for e := range eventCount {
		if s.pending[e] && !s.told[e] {
			s.pending[e], s.told[e] = false, true
			return events[e].result, true
		}
	}
	return 0, false
}

// logRead lets the event of a log page come again, and tells whether one waits.
func (c *controller) logRead(page uint8) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := range events {
		if events[e].page == page {
			c.events.told[e] = false
		}
	}
	// Linux with native multipath does so before it connects I/O queues. Later it may be
	// anybody there with nvme-cli, and the host would fail commands with statuses that it
	// does not know what to do with.
	if page == wire.LogANA && len(c.queues) == 0 {
		c.readsANA = true
	}
}

// takeChanged empties the list of changed namespaces, unless it is to be kept.
func (c *controller) takeChanged(keep bool) []uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.events.changed
	if !keep {
		c.events.changed = nil
	}
	return list
}

// heedsANA tells whether the host knows what the statuses of asymmetric access
// mean: it has read the log before it had I/O queues.
func (c *controller) heedsANA() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.readsANA
}

// errorLog keeps the last errors of a controller, the newest first when read.
type errorLog struct {
	count   uint64
	entries [errorEntries]wire.ErrorEntry
}

const errorEntries = 64

func (c *controller) logError(e wire.ErrorEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.errors
	l.count++
	e.Count = l.count
	l.entries[l.count%errorEntries] = e
}

func (c *controller) errorPage() (page []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.errors
	for i := range uint64(errorEntries) {
		if l.count <= i {
			break
		}
		page = l.entries[(l.count-i)%errorEntries].Append(page)
	}
	return append(page, make([]byte, errorEntries*wire.ErrorEntrySize-len(page))...)
}
