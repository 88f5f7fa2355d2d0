package backup

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
)

// Stats tells what is in a repository and what it takes. All counts but those of
// things are bytes.
type Stats struct {
	Repository string `json:"repository"` // its UUID
	Location   string `json:"location"`
	Encrypted  bool   `json:"encrypted"`
	ChunkSize  int64  `json:"chunk_size"`

	Backups int `json:"backups"`
	// Damaged counts backups and tables that can't be read; what they name is
	// taken for unused.
	Damaged int           `json:"damaged,omitempty"`
	Volumes []VolumeStats `json:"volumes"` // by name

	// Total is about the volumes of all backups together.
	Total Usage `json:"total"`
	// Nodes and NodeBytes are the tables, as they lie in packs.
	Nodes     int64 `json:"nodes"`
	NodeBytes int64 `json:"node_bytes"`
	// ManifestBytes is what the manifests take.
	ManifestBytes int64 `json:"manifest_bytes"`
	// IndexBytes is what packs have beside their blobs: directories and ends.
	IndexBytes int64 `json:"index_bytes"`
	OtherBytes int64 `json:"other_bytes"` // config, keys, leases, notes

	Packs     int   `json:"packs"`
	PackBytes int64 `json:"pack_bytes"`
	// UnusedPacks are named by no backup, and go at the next prune when no
	// operation that may need them is running.
	UnusedPacks     int   `json:"unused_packs"`
	UnusedPackBytes int64 `json:"unused_pack_bytes"`
	// InterruptedBytes are packs that wait for the next run of a backup that did not
	// get to its end.
	InterruptedBytes int64 `json:"interrupted_bytes"`
	// UnusedBytes lie in packs of which backups need something else.
	UnusedBytes int64 `json:"unused_bytes"`
	// StoredBytes is all together.
	StoredBytes int64 `json:"stored_bytes"`
}

// Usage is what volume images hold and what that takes.
type Usage struct {
	Size   int64 `json:"size"`       // of the images, as they restore
	Data   int64 `json:"data_bytes"` // of Size: in chunks that are not all zero
	Chunks int64 `json:"chunks"`     // distinct, as they are stored
	// Distinct is the plaintext of the chunks, Stored what they take in packs.
	Distinct int64 `json:"distinct_bytes"`
	Stored   int64 `json:"stored_bytes"`
}

// Dedup is how many times the chunks would be stored if nothing were shared.
func (u Usage) Dedup() float64 { return ratio(u.Data, u.Distinct) }

// Compression is how many times the chunks are larger than what they take.
func (u Usage) Compression() float64 { return ratio(u.Distinct, u.Stored) }

func ratio(a, b int64) float64 {
	if b == 0 {
		return 1
	}
	return float64(a) / float64(b)
}

func (u *Usage) add(ref format.Ref) {
	u.Chunks++
	u.Distinct += int64(ref.Length)
	u.Stored += format.BlobHeaderSize + int64(ref.Stored)
}

// VolumeStats is about the images of one volume in all backups.
type VolumeStats struct {
	VolumeRef       // of the newest backup
	Backups   int   `json:"backups"`
	Usage     Usage `json:"usage"`
}

// Stats looks at all backups. It reads manifests, tables and names, and no data.
func (r *Repository) Stats(ctx context.Context) (st Stats, err error) {
	op := "look at " + r.Location()
	s, err := r.beginReading(ctx, "stats", logger(nil))
	if err != nil {
		return st, wrap(op, err)
	}
	defer s.end()
	st = Stats{Repository: r.ID(), Location: r.Location(), Encrypted: r.Encrypted(), ChunkSize: r.ChunkSize(), Volumes: []VolumeStats{}}
	list, err := r.list(ctx)
	if err != nil {
		return st, wrap(op, err)
	}
	live, err := r.statVolumes(ctx, &st, list)
	if err == nil {
		err = r.statObjects(ctx, &st, live)
	}
	return st, wrap(op, err)
}

// volumeImage is a volume in a backup.
type volumeImage struct {
	b Backup
	v BackupVolume
}

// statVolumes counts what tables name, and returns what that is of each pack.
func (r *Repository) statVolumes(ctx context.Context, st *Stats, list []Backup) (map[format.ID]packUse, error) {
	groups := make(map[string][]volumeImage)
	for _, b := range list {
		if b.Damaged != "" {
			st.Damaged++
			continue
		}
		st.Backups++
		for _, v := range b.Volumes {
			k := cmp.Or(v.UUID, v.name())
			groups[k] = append(groups[k], volumeImage{b, v})
		}
	}
	live := make(map[format.ID]packUse)
	all := make(places)
	for _, g := range groups {
		vs := VolumeStats{VolumeRef: g[len(g)-1].v.VolumeRef, Backups: len(g)}
		// A table that two volumes share counts for both of them.
		t, err := r.newTables(ctx)
		if err != nil {
			return nil, err
		}
		for _, i := range g {
			vs.Usage.Size += i.v.Size
			vs.Usage.Data += i.v.DataBytes
			err := t.volume(i.b, i.v, seen{
				chunk: func(_ int64, ref format.Ref) error {
					vs.Usage.add(ref)
					if all.add(ref) {
						st.Total.add(ref)
						live[ref.Pack] = live[ref.Pack].with(ref)
					}
					return nil
				},
				node: func(_ int64, ref format.Ref) error {
					if all.add(ref) {
						st.Nodes++
						st.NodeBytes += format.BlobHeaderSize + int64(ref.Stored)
						live[ref.Pack] = live[ref.Pack].with(ref)
					}
					return nil
				},
				bad: func(int64, int64, format.Ref, error) error {
					st.Damaged++
					return nil
				},
			})
			if err != nil {
				t.close()
				return nil, err
			}
		}
		t.close()
		st.Total.Size += vs.Usage.Size
		st.Total.Data += vs.Usage.Data
		st.Volumes = append(st.Volumes, vs)
	}
	slices.SortFunc(st.Volumes, func(a, b VolumeStats) int {
		return cmp.Or(cmp.Compare(a.name(), b.name()), cmp.Compare(a.UUID, b.UUID))
	})
	return live, nil
}

// statObjects counts what the objects take.
func (r *Repository) statObjects(ctx context.Context, st *Stats, live map[format.ID]packUse) error {
	packs, err := r.store.List(ctx, pack.Dir)
	if err != nil {
		return err
	}
	kept := make(map[format.ID]bool)
	if err := r.noteNeeded(ctx, kept); err != nil && !unreadable(err) {
		return err
	}
	for _, p := range packs {
		st.StoredBytes += p.Size
		id, ok := packID(p.Name)
		if !ok {
			st.OtherBytes += p.Size
			continue
		}
		st.Packs++
		st.PackBytes += p.Size
		l, needed := live[id]
		switch {
		case needed:
		case kept[id]:
			st.InterruptedBytes += p.Size
			continue
		default:
			st.UnusedPacks++
			st.UnusedPackBytes += p.Size
			continue
		}
		st.IndexBytes += l.index()
		st.UnusedBytes += l.unused(p.Size)
	}
	for dir, n := range map[string]*int64{backupDir: &st.ManifestBytes, keyDir: &st.OtherBytes, leaseDir: &st.OtherBytes, interruptedDir: &st.OtherBytes, "gc": &st.OtherBytes, "locks": &st.OtherBytes} {
		infos, err := r.store.List(ctx, dir)
		if err != nil {
			return err
		}
		for _, i := range infos {
			*n += i.Size
			st.StoredBytes += i.Size
		}
	}
	n, err := r.store.Size(ctx, configName)
	st.OtherBytes += n
	st.StoredBytes += n
	return err
}

// packUse is what tables name of a pack.
type packUse struct {
	blobs int64
	bytes int64 // with their headers
}

func (u packUse) with(ref format.Ref) packUse {
	return packUse{u.blobs + 1, u.bytes + format.BlobHeaderSize + int64(ref.Stored)}
}

// index is what the pack needs beside the blobs that are named.
func (u packUse) index() int64 {
	return format.PackHeaderSize + format.FooterSize + u.blobs*format.DirEntrySize
}

// unused is what a pack of so many bytes would lose if it had nothing else.
func (u packUse) unused(size int64) int64 { return max(size-u.bytes-u.index(), 0) }

// packID is the ID of the pack whose object has this name.
func packID(name string) (id format.ID, ok bool) {
	id, err := format.ParseID(name[strings.LastIndexByte(name, '/')+1:])
	return id, err == nil && pack.Name(id) == name
}
