package backup

import (
	"context"
	"errors"
	"slices"

	"github.com/swapback/swapback/backup/internal/cache"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
)

// An Image's fetches. A job is one read of the repository: a node, a chunk that
// somebody waits for, or a run of chunks ahead of a reader that follow each other
// in a pack. Goroutines, made when there is work and at most Parallel, take what
// is waited for before what is ahead.

// fetches are the jobs that wait. Guarded by Image.mu.
type fetches struct {
	urgent, ahead []job
	running       int
	readers       []*pack.Reader // not in use
	closed        bool
	failing       bool // the repository could not be reached the last time
}

// job fills blocks of a cache. Whoever made it has made the blocks.
type job struct {
	refs  []format.Ref
	offs  []int64 // of the chunks; of a node, the first byte below it
	fill  []filler
	level int // of a node; 0 for chunks
	key   nodeKey
}

// filler is a block that is being filled.
type filler interface {
	Data() []byte
	Done(err error)
}

func chunkJob(off int64, ref format.Ref, b *cache.Block[int64]) job {
	return job{refs: []format.Ref{ref}, offs: []int64{off}, fill: []filler{b}}
}

func nodeJob(key nodeKey, ref format.Ref, b *cache.Block[nodeKey]) job {
	return job{refs: []format.Ref{ref}, offs: []int64{key.off}, fill: []filler{b}, level: key.level, key: key}
}

// want has a job done at once: when it is fresh, or else when it waits among
// those ahead.
func (im *Image) want(j job, fresh bool) {
	im.mu.Lock()
	defer im.mu.Unlock()
	f := &im.fetches
	if fresh {
		f.urgent = append(f.urgent, j)
		im.work()
		return
	}
	i := slices.IndexFunc(f.ahead, func(a job) bool {
		return a.level == j.level && slices.Contains(a.offs, j.offs[0])
	})
	if i >= 0 {
		f.urgent = append(f.urgent, f.ahead[i])
		f.ahead = slices.Delete(f.ahead, i, i+1)
	}
}

// work makes a goroutine if it may; mu is held. Once the image is closed the jobs
// are failed.
func (im *Image) work() {
	f := &im.fetches
	if f.closed {
		for _, j := range append(f.urgent, f.ahead...) {
			j.fail(ErrImageClosed)
		}
		f.urgent, f.ahead = nil, nil
		return
	}
	if f.running < im.o.Parallel {
		f.running++
		im.ended.Go(im.worker)
	}
}

func (j job) fail(err error) {
	for _, b := range j.fill {
		b.Done(err)
	}
}

// worker does jobs until there are none.
func (im *Image) worker() {
	reader, err := im.takeReader()
	for {
		j, ok := im.nextJob(reader)
		switch {
		case !ok:
			return
		case err != nil:
			j.fail(err)
		default:
			im.do(reader, j)
		}
	}
}

func (im *Image) takeReader() (*pack.Reader, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	f := &im.fetches
	if n := len(f.readers); n > 0 {
		r := f.readers[n-1]
		f.readers = f.readers[:n-1]
		return r, nil
	}
	return im.r.newReader()
}

// nextJob takes a job, or ends the goroutine and takes its reader back.
func (im *Image) nextJob(reader *pack.Reader) (j job, ok bool) {
	im.mu.Lock()
	defer im.mu.Unlock()
	f := &im.fetches
	switch {
	case len(f.urgent) > 0:
		j, f.urgent = f.urgent[0], f.urgent[1:]
		return j, true
	case len(f.ahead) > 0:
		j, f.ahead = f.ahead[0], f.ahead[1:]
		return j, true
	}
	f.running--
	switch {
	case reader == nil:
	case f.closed:
		reader.Close()
	default:
		f.readers = append(f.readers, reader)
	}
	return job{}, false
}

// do fetches and checks a job's blobs. One that is damaged does not harm the
// others.
func (im *Image) do(reader *pack.Reader, j job) {
	dst := make([][]byte, len(j.refs))
	for i, ref := range j.refs {
		dst[i] = j.fill[i].Data()[:ref.Length]
	}
	errs := make([]error, len(j.refs))
	before := reader.Bytes()
	err := reader.ReadRunInto(im.ctx, j.refs, dst, func(i int, err error) { errs[i] = err })
	read := reader.Bytes() - before
	if err != nil {
		if im.ctx.Err() != nil {
			err = ErrImageClosed
		}
		for i := range errs {
			errs[i] = err
		}
	}
	if j.level > 0 && errs[0] == nil {
		// A node is good as a whole or not at all, as for a restore.
		errs[0] = im.shape.DecodeNode(dst[0], j.level, j.key.off, func(int64, format.Ref) error { return nil })
	}
	im.mu.Lock()
	im.stats.Fetches++
	im.stats.ReadBytes += read
	im.noteReach(err)
	for i, err := range errs {
		switch {
		case j.level > 0 && err == nil:
			im.stats.Nodes++
		case j.level > 0:
			im.noteRead(j.offs[i], j.refs[i], err)
		default:
			if err == nil {
				im.stats.Chunks++
			}
			im.noteRead(j.offs[i], j.refs[i], err)
		}
	}
	im.mu.Unlock()
	for i, b := range j.fill {
		b.Done(errs[i])
	}
}

// noteReach tells when the repository can't be reached, and when it can again. mu
// is held.
func (im *Image) noteReach(err error) {
	f := &im.fetches
	switch {
	case errors.Is(err, ErrImageClosed), errors.Is(err, context.Canceled):
	case err != nil && !f.failing:
		f.failing = true
		im.log.Error("repository can't be read; reads of the image get errors until it can", "repository", im.r.Location(), "err", err)
	case err == nil && f.failing:
		f.failing = false
		im.log.Warn("repository is read again", "repository", im.r.Location())
	}
}

// closeReaders frees what idle goroutines left.
func (im *Image) closeReaders() {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, r := range im.fetches.readers {
		r.Close()
	}
	im.fetches.readers = nil
}
