package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store"
)

const backupDir = "backups"

// A backup's ID is its instant in UTC and eight random hex digits, so that IDs
// sort by time and a few letters are enough to name one.
const idTime = "20060102T150405Z"

func makeID(at time.Time, random format.ID) string {
	return fmt.Sprintf("%s-%x", at.UTC().Format(idTime), random[:4])
}

func validID(id string) bool {
	date, random, ok := strings.Cut(id, "-")
	if _, err := time.Parse(idTime, date); !ok || err != nil || len(date) != len(idTime) {
		return false
	}
	b, err := hex.DecodeString(random)
	return err == nil && len(b) == 4 && strings.ToLower(random) == random
}

// checkManifest checks what a decoded manifest says, as far as that needs no
// other object.
func (r *Repository) checkManifest(b Backup, id string) error {
	if b.ID != id || !strings.HasPrefix(id, b.Created.UTC().Format(idTime)+"-") {
		return fmt.Errorf("%w: it is the manifest of %.64q at %v", format.ErrCorrupt, b.ID, b.Created)
	}
	if len(b.Volumes) == 0 || len(b.Volumes) > maxVolumes {
		return fmt.Errorf("%w: it has %d volumes", format.ErrCorrupt, len(b.Volumes))
	}
	for i, v := range b.Volumes {
		if v.ChunkSize != r.config.ChunkSize {
			return fmt.Errorf("%w: volume %d has chunks of %d bytes, the repository's have %d", format.ErrCorrupt, i, v.ChunkSize, r.config.ChunkSize)
		}
		if _, _, err := v.table(); err != nil {
			return fmt.Errorf("volume %d: %w", i, err)
		}
	}
	if err := b.checkTexts(); err != nil {
		return fmt.Errorf("%w: %w", format.ErrCorrupt, err)
	}
	return b.checkCounts()
}

// table returns the shape and the root of a volume's table.
func (v BackupVolume) table() (shape format.Shape, root format.Ref, err error) {
	shape, err = format.ShapeOf(v.Size, v.ChunkSize)
	if err != nil || v.Table == (Table{}) {
		return shape, root, err
	}
	t := v.Table
	hash, err := hex.DecodeString(t.Hash)
	if err != nil || len(hash) != len(root.Hash) || format.Hash(hash).String() != t.Hash { // lower case, as an ID
		return shape, root, fmt.Errorf("%w: hash %.80q of the table", format.ErrCorrupt, t.Hash)
	}
	root = format.Ref{Hash: format.Hash(hash), Offset: t.Offset, Stored: t.Stored, Length: t.Length, Kind: format.KindNode}
	if root.Pack, err = format.ParseID(t.Pack); err != nil {
		return shape, root, err
	}
	if root.Codec, err = format.ParseCodec(t.Codec); err != nil {
		return shape, root, err
	}
	if root.Seal, err = format.ParseSeal(t.Seal); err != nil {
		return shape, root, err
	}
	return shape, root, shape.CheckEntry(root, shape.Levels+1, 0)
}

func tableOf(root format.Ref) Table {
	if root.IsZero() {
		return Table{}
	}
	t := Table{Hash: root.Hash.String(), Pack: root.Pack.String(), Offset: root.Offset,
		Stored: root.Stored, Length: root.Length, Codec: root.Codec.String()}
	if root.Seal != format.Open {
		t.Seal = root.Seal.String()
	}
	return t
}

// name is how a volume is called in messages.
func (v VolumeRef) name() string {
	switch {
	case v.Name == "":
		return v.UUID
	case v.Pool == "":
		return v.Name
	}
	return v.Pool + "/" + v.Name
}

// ids returns the IDs of all backups, oldest second first.
func (r *Repository) ids(ctx context.Context) ([]string, error) {
	infos, err := r.store.List(ctx, backupDir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, i := range infos {
		if id := strings.TrimPrefix(i.Name, backupDir+"/"); validID(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// readManifest reads the manifest of a backup. It may be exchanged meanwhile, see
// moving, so that what is read is partly of one and partly of the other: it is damaged
// only when it is the same damaged one twice.
func (r *Repository) readManifest(ctx context.Context, id string) (b Backup, err error) {
	const attempts = 3
	var before [sha256.Size]byte
	for i := 1; ; i++ {
		body, err := readText(ctx, r.store, backupDir+"/"+id)
		if err == nil {
			b, err = r.decodeManifest(body, id)
		}
		sum := sha256.Sum256(body)
		if !pack.IsDamage(err) || errors.Is(err, store.ErrNotExist) || i > 1 && sum == before || i == attempts {
			return b, err
		}
		before = sum
	}
}

func (r *Repository) decodeManifest(body []byte, id string) (b Backup, err error) {
	name := backupDir + "/" + id
	var m manifest
	if err := r.decodeSealed(body, format.TextBackup, name, &m); err != nil {
		return Backup{}, fmt.Errorf("%s: %w", name, err)
	}
	b = m.backup()
	if err := r.checkManifest(b, id); err != nil {
		return Backup{}, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// list reads all manifests, oldest first. One that can't be read because of what
// is in it is in the list with Damaged set.
func (r *Repository) list(ctx context.Context) ([]Backup, error) {
	ids, err := r.ids(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Backup, 0, len(ids))
	for _, id := range ids {
		b, err := r.readManifest(ctx, id)
		switch {
		case errors.Is(err, store.ErrNotExist):
			continue // deleted since
		case pack.IsDamage(err), errors.Is(err, format.ErrVersion):
			// The end of its second, so that no other of that second passes for
			// a later one.
			at, _ := time.Parse(idTime, id[:len(idTime)])
			b = Backup{ID: id, Created: at.Add(time.Second - 1), Damaged: err.Error()}
		case err != nil:
			return nil, err
		}
		list = append(list, b)
	}
	// IDs know seconds only.
	slices.SortStableFunc(list, func(a, b Backup) int { return a.Created.Compare(b.Created) })
	return list, nil
}

// List returns all backups, oldest first. A backup whose manifest can't be read
// is in the list with Damaged set.
func (r *Repository) List(ctx context.Context) ([]Backup, error) {
	list, err := r.list(ctx)
	return list, wrap("list backups in "+r.Location(), err)
}

// Get finds a backup by its ID, a unique beginning of it or of its part after the
// dash, or "latest".
func (r *Repository) Get(ctx context.Context, id string) (Backup, error) {
	op := fmt.Sprintf("find backup %q in %s", id, r.Location())
	if id == "latest" {
		return r.latest(ctx, op, func(Backup) bool { return true },
			"the repository has no backup yet; make one with: swapback backup create")
	}
	full, err := r.resolve(ctx, op, id)
	if err != nil {
		return Backup{}, err
	}
	b, err := r.readManifest(ctx, full)
	if errors.Is(err, store.ErrNotExist) {
		return Backup{}, &Error{Kind: ErrNotFound, Op: op, Remedy: "it has just been deleted"}
	}
	if err != nil {
		return Backup{}, wrap(op, err)
	}
	return b, nil
}

// resolve returns the full ID of the one backup that id means.
func (r *Repository) resolve(ctx context.Context, op, id string) (string, error) {
	ids, err := r.ids(ctx)
	if err != nil {
		return "", wrap(op, err)
	}
	var found []string
	for _, full := range ids {
		if full == id {
			return full, nil
		}
		if id != "" && strings.HasPrefix(full, id) {
			found = append(found, full)
		}
	}
	if len(found) == 0 && id != "" {
		for _, full := range ids {
			if _, random, _ := strings.Cut(full, "-"); strings.HasPrefix(random, id) {
				found = append(found, full)
			}
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", &Error{Kind: ErrNotFound, Op: op, Remedy: "see which there are with: swapback backup list"}
	}
	return "", &Error{Kind: ErrAmbiguous, Op: op, Detail: some(found), Remedy: "give more letters of the ID"}
}

// Latest returns the newest backup that holds all the volumes.
func (r *Repository) Latest(ctx context.Context, volumeUUIDs ...string) (Backup, error) {
	op := fmt.Sprintf("find the latest backup of volume %s in %s", strings.Join(volumeUUIDs, ", "), r.Location())
	holdsAll := func(b Backup) bool {
		for _, uuid := range volumeUUIDs {
			if !slices.ContainsFunc(b.Volumes, func(v BackupVolume) bool { return v.UUID == uuid }) {
				return false
			}
		}
		return true
	}
	return r.latest(ctx, op, holdsAll, "make one with: swapback backup create")
}

// latest returns the newest backup for which want is true. A manifest on the way
// to it that can't be read is an error: an older backup in the newest one's place
// would be the wrong data without anybody knowing.
func (r *Repository) latest(ctx context.Context, op string, want func(Backup) bool, remedy string) (Backup, error) {
	list, err := r.list(ctx)
	if err != nil {
		return Backup{}, wrap(op, err)
	}
	for _, b := range slices.Backward(list) {
		if b.Damaged != "" {
			return Backup{}, &Error{Kind: ErrDamaged, Op: op, Object: b.ID, Detail: b.Damaged,
				Remedy: "name the backup you want by its ID, or delete this one"}
		}
		if want(b) {
			return b, nil
		}
	}
	return Backup{}, &Error{Kind: ErrNotFound, Op: op, Remedy: remedy}
}
