package backup

import (
	"context"
	"iter"
	"math"
	"sync"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/table"
)

// nodeCache reads the nodes of a base: for the feeder, which looks up what there was;
// for the collector, which comes a few chunks later to take entries over; and ahead of
// both, several at once, so that a far repository need not be waited for node by node.
// What one has read the others find. It is safe for concurrent use.
type nodeCache struct {
	readers chan *pack.Reader // that nobody uses now
	mu      sync.Mutex
	nodes   map[format.Ref]*cachedNode
	order   []format.Ref // of nodes, a ring once it is full
	next    int
	free    [][]byte // memory for nodes
}

type cachedNode struct {
	once sync.Once
	node []byte
	err  error

	// Under the cache's mutex:
	users int  // who read it now
	gone  bool // from the cache
}

const (
	// cachedNodes bounds a nodeCache, at 64 KiB each.
	cachedNodes = 64
	// nodeReaders is how many nodes are read at once, nodesAhead how many before
	// they are needed.
	nodeReaders = 8
	nodesAhead  = 16
)

func (r *Repository) newNodeCache() (*nodeCache, error) {
	n := &nodeCache{readers: make(chan *pack.Reader, nodeReaders), nodes: make(map[format.Ref]*cachedNode)}
	for range nodeReaders {
		reader, err := r.newReader()
		if err != nil {
			n.close()
			return nil, err
		}
		n.readers <- reader
	}
	return n, nil
}

// close must not be called while a read is under way.
func (n *nodeCache) close() {
	close(n.readers)
	for r := range n.readers {
		r.Close()
	}
}

// read fills dst with a node. With a dst of nil it only remembers it.
func (n *nodeCache) read(ctx context.Context, ref format.Ref, dst []byte) error {
	c := n.use(ref)
	defer n.done(c)
	c.once.Do(func() {
		r := <-n.readers
		defer func() { n.readers <- r }()
		c.node = n.room()[:ref.Length]
		c.err = r.Read(ctx, ref, c.node)
	})
	if c.err == nil {
		copy(dst, c.node)
	}
	return c.err
}

func (n *nodeCache) use(ref format.Ref) *cachedNode {
	n.mu.Lock()
	defer n.mu.Unlock()
	c, there := n.nodes[ref]
	if !there {
		if len(n.order) < cachedNodes {
			n.order = append(n.order, ref)
		} else {
			oldest := n.nodes[n.order[n.next]]
			delete(n.nodes, n.order[n.next])
			n.order[n.next], n.next = ref, (n.next+1)%cachedNodes
			oldest.gone = true
			n.reuse(oldest)
		}
		c = new(cachedNode)
		n.nodes[ref] = c
	}
	c.users++
	return c
}

func (n *nodeCache) done(c *cachedNode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c.users--
	n.reuse(c)
}

// reuse takes the memory of a node that nobody will read any more.
func (n *nodeCache) reuse(c *cachedNode) {
	if c.gone && c.users == 0 && c.node != nil {
		n.free = append(n.free, c.node)
		c.node = nil
	}
}

// room returns memory for a node.
func (n *nodeCache) room() []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	if last := len(n.free) - 1; last >= 0 {
		mem := n.free[last]
		n.free = n.free[:last]
		return mem[:format.MaxNode]
	}
	return make([]byte, format.MaxNode)
}

// scout has the nodes of level 1 that a plan will need read ahead.
type scout struct {
	base   *base
	cursor *table.Cursor
	next   func() (Range, bool) // runs to read
	run    Range                // what is left of the run being looked at
	passed int64                // up to where nodes have been asked for
	spawn  func(func() error)
}

// newScout returns a scout that reads in goroutines that spawn starts. stop ends it.
func newScout(p *plan, runs iter.Seq[Range], spawn func(func() error)) (s *scout, stop func()) {
	if p.base == nil || p.base.tree.Shape.Levels < 2 {
		return nil, func() {}
	}
	s = &scout{base: p.base, cursor: p.cursor(), spawn: spawn}
	s.next, stop = iter.Pull(runs)
	return s, stop
}

// ahead is told that what lies at off is needed next. When that is beyond what has
// been asked for it asks for the nodes of some more.
func (s *scout) ahead(off int64) error {
	if s == nil || off < s.passed {
		return nil
	}
	shape := s.base.tree.Shape
	for range nodesAhead {
		for s.run.Offset+s.run.Length <= s.passed {
			var more bool
			if s.run, more = s.next(); !more {
				s.passed = math.MaxInt64
				return nil
			}
		}
		start := max(s.run.Offset, s.passed)
		start -= start % shape.Span(1)
		s.passed = start + shape.Span(1)
		if start >= shape.Size {
			continue // there was nothing
		}
		ref, err := s.cursor.Entry(2, start)
		if err != nil {
			return err
		}
		if !ref.IsZero() {
			s.spawn(func() error {
				s.base.fetch(ref)
				return nil
			})
		}
	}
	return nil
}
