package backup

import (
	"errors"
	"slices"

	"github.com/swapback/swapback/backup/internal/cache"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
)

// Reading ahead. Each chunk that is read belongs to a stream, if it comes shortly
// after the last one of the stream, or else begins one. The second chunk of a
// stream has two more fetched; while what was fetched is read the window doubles
// with each further chunk, and when some of it had to be dropped unread it is
// halved. A random reader makes streams of one chunk, and nothing is fetched.

const (
	maxStreams = 16
	// streamGap is by how many bytes the requests of one reader come out of order:
	// several are under way at once.
	streamGap = 4 << 20
)

// stream is a reader that reads one chunk after the other. Guarded by Image.mu.
type stream struct {
	next   int64 // first byte after the chunk read last
	asked  int64 // first byte that was not asked for ahead
	window int64 // bytes to ask for ahead
}

// goesOn tells whether the chunk at off is of the stream.
func (s *stream) goesOn(off, chunk int64) bool {
	gap := chunk
	if s.window > 0 {
		gap = max(streamGap, chunk)
	}
	return off >= s.next-gap && off < s.next+gap
}

// readAhead is told of each chunk that is read, by the offset of the chunk.
func (im *Image) readAhead(off int64) {
	chunk := im.shape.ChunkSize
	most := im.o.ReadAhead &^ (chunk - 1)
	if most <= 0 {
		return
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	i := slices.IndexFunc(im.streams, func(s stream) bool { return s.goesOn(off, chunk) })
	if i < 0 {
		if len(im.streams) == maxStreams {
			im.streams = im.streams[:maxStreams-1]
		}
		im.streams = slices.Insert(im.streams, 0, stream{next: off + chunk, asked: off + chunk})
		return
	}
	s := im.streams[i]
	if off >= s.next {
		s.next = off + chunk
		im.grow(&s, most)
		if s.asked = max(s.asked, s.next); s.asked-s.next < s.window/2+chunk {
			// Not chunk by chunk, so that those beside each other come in one fetch.
			s.asked = im.askAhead(s.asked, s.next+s.window)
		}
	}
	im.streams = slices.Delete(im.streams, i, i+1)
	im.streams = slices.Insert(im.streams, 0, s)
}

// grow sets how far a stream reads ahead that has gone on.
func (im *Image) grow(s *stream, most int64) {
	chunk := im.shape.ChunkSize
	wasted := im.chunks.Wasted()
	switch {
	case wasted > im.wasted:
		s.window = max(s.window/2&^(chunk-1), chunk)
	case s.window == 0:
		s.window = min(2*chunk, most)
	default:
		s.window = min(2*s.window, most)
	}
	im.wasted = wasted
}

// askAhead has the chunks from one offset to another fetched, without waiting for
// anything: those that there is no buffer for are passed over. It returns how far it
// came: to where a node of the table is not in memory, which is fetched then.
func (im *Image) askAhead(from, to int64) int64 {
	chunk := im.shape.ChunkSize
	var run job
	flush := func() {
		if len(run.refs) > 0 {
			im.fetches.ahead = append(im.fetches.ahead, run)
			im.stats.Ahead += int64(len(run.refs))
			im.work()
		}
		run = job{}
	}
	defer flush()
	missing := func(key nodeKey, ref format.Ref) (*cache.Block[nodeKey], error) {
		b, err := im.cachedNode(key, ref)
		if err != nil {
			if b := im.nodes.Reserve(key); b != nil {
				im.fetches.ahead = append(im.fetches.ahead, nodeJob(key, ref, b))
				im.work()
			}
		}
		return b, err
	}
	for off := from; off < min(to, im.shape.Size); off += chunk {
		ref, err := im.lookup(off, missing)
		if errors.Is(err, errNotCached) {
			return off
		}
		if err != nil || ref.IsZero() {
			continue
		}
		b := im.chunks.Reserve(off)
		if b == nil {
			continue
		}
		if n := len(run.refs); n > 0 && (!pack.Follows(run.refs[n-1], ref) || int64(n+1)*chunk > max(taskBytes, chunk)) {
			flush()
		}
		run.refs, run.offs, run.fill = append(run.refs, ref), append(run.offs, off), append(run.fill, b)
	}
	return to
}
