package backup

import (
	"context"
	"fmt"

	"github.com/swapback/swapback/backup/internal/device"
	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/table"
)

// askVolumes asks once for volumes that may have what is damaged.
func (h *healing) askVolumes(ctx context.Context) {
	if h.asked || h.o.Volumes == nil || len(h.chunks)+len(h.nodes) == 0 {
		return
	}
	h.asked = true
	var which []VolumeRef
	seen := make(map[string]bool)
	for _, in := range []map[format.Hash]*badBlob{h.chunks, h.nodes} {
		for _, b := range inOrder(in) {
			for _, s := range b.spots {
				if k := s.v.UUID + s.v.name(); !seen[k] {
					seen[k] = true
					which = append(which, s.v.VolumeRef)
				}
			}
		}
	}
	for _, path := range h.o.Volumes(ctx, which) {
		f, err := openFileSource(path, h.r.config.ChunkSize)
		if err != nil {
			h.log.Warn("a volume that may have what is damaged can't be read", "path", path, "err", err)
			continue
		}
		h.sources = append(h.sources, f)
	}
}

func (h *healing) open(op string) error {
	for _, o := range h.o.Repositories {
		h.sources = append(h.sources, &repositorySource{r: o, twin: o.ID() == h.r.ID()})
	}
	for _, path := range h.o.From {
		f, err := openFileSource(path, h.r.config.ChunkSize)
		if err != nil {
			return wrapSource(op, path, err)
		}
		h.sources = append(h.sources, f)
	}
	return nil
}

func (h *healing) close() {
	for _, s := range h.sources {
		s.close()
	}
}

// healSource may have what is damaged. What it says is believed when right says so of
// dst. An error ends the heal.
type healSource interface {
	name() string
	chunk(ctx context.Context, b *badBlob, dst []byte, right func() bool) (bool, error)
	close()
}

// fileSource is a device or file, of which it is not known what it shows.
type fileSource struct {
	file *device.File
	buf  []byte
}

func openFileSource(path string, chunk int64) (*fileSource, error) {
	f, err := device.OpenSource(path)
	if err != nil {
		return nil, err
	}
	return &fileSource{file: f, buf: device.Buffer(int(chunk))}, nil
}

func (f *fileSource) name() string { return f.file.Path() }
func (f *fileSource) close()       { f.file.Close() }

// read tells whether there was something to read: what can't be read is not had.
func (f *fileSource) read(ctx context.Context, dst []byte, off int64) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if off+int64(len(dst)) > f.file.Size() {
		return false, nil
	}
	_, err := f.file.ReadAt(dst, off)
	return err == nil, nil
}

func (f *fileSource) chunk(ctx context.Context, b *badBlob, dst []byte, right func() bool) (bool, error) {
	tried := make(map[int64]bool)
	for _, s := range b.spots {
		if tried[s.off] {
			continue
		}
		tried[s.off] = true
		if ok, err := f.read(ctx, dst, s.off); err != nil {
			return false, err
		} else if ok && right() {
			return true, nil
		}
	}
	return false, nil
}

// repositorySource is another repository. A twin is the same one elsewhere: what it
// has is at the same places, unless one of the two was healed or pruned since.
type repositorySource struct {
	r      *Repository
	twin   bool
	reader *pack.Reader
}

func (s *repositorySource) name() string { return s.r.Location() }

func (s *repositorySource) close() {
	if s.reader != nil {
		s.reader.Close()
	}
}

// read tells whether the blob is there and good.
func (s *repositorySource) read(ctx context.Context, ref format.Ref, dst []byte) (bool, error) {
	if s.reader == nil {
		var err error
		if s.reader, err = s.r.newReader(); err != nil {
			return false, err
		}
	}
	err := s.reader.Read(ctx, ref, dst)
	if err != nil && !unreadable(err) {
		return false, fmt.Errorf("read from %s: %w", s.r.Location(), err)
	}
	return err == nil, nil
}

func (s *repositorySource) chunk(ctx context.Context, b *badBlob, dst []byte, right func() bool) (bool, error) {
	if ok, err := s.node(ctx, b, dst, right); ok || err != nil {
		return ok, err
	}
	for _, spot := range b.spots {
		refs, err := s.at(ctx, spot)
		if err != nil {
			return false, err
		}
		for _, ref := range refs {
			if ref.Length != b.length {
				continue
			}
			if ok, err := s.read(ctx, ref, dst); err != nil {
				return false, err
			} else if ok && right() {
				return true, nil
			}
		}
	}
	return false, nil
}

// node reads a blob of either kind at its own places.
func (s *repositorySource) node(ctx context.Context, b *badBlob, dst []byte, right func() bool) (bool, error) {
	if !s.twin {
		return false, nil
	}
	for _, ref := range b.refs {
		if ok, err := s.read(ctx, ref, dst); err != nil {
			return false, err
		} else if ok && right() {
			return true, nil
		}
	}
	return false, nil
}

// at returns what the backups of the same instant have at the same place of the same
// volume.
func (s *repositorySource) at(ctx context.Context, spot spot) (refs []format.Ref, err error) {
	if s.r.config.ChunkSize != spot.v.ChunkSize {
		return nil, nil
	}
	list, err := s.r.list(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range list {
		if !b.Created.Equal(spot.b.Created) || b.Damaged != "" {
			continue
		}
		for _, v := range b.Volumes {
			if v.UUID != spot.v.UUID || v.name() != spot.v.name() || v.Size != spot.v.Size {
				continue
			}
			ref, err := s.r.chunkAt(ctx, v, spot.off)
			if err != nil && !unreadable(err) {
				return nil, err
			}
			if err == nil && !ref.IsZero() {
				refs = append(refs, ref)
			}
		}
	}
	return refs, nil
}

// chunkAt returns where the chunk lies that begins at off of a volume.
func (r *Repository) chunkAt(ctx context.Context, v BackupVolume, off int64) (format.Ref, error) {
	shape, root, err := v.table()
	if err != nil {
		return root, err
	}
	reader, err := r.newReader()
	if err != nil {
		return root, err
	}
	defer reader.Close()
	return table.NewCursor(table.Tree{Shape: shape, Root: root, Read: func(ref format.Ref, dst []byte) error {
		return reader.Read(ctx, ref, dst)
	}}).Entry(1, off)
}
