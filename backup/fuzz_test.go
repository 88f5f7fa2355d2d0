package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/swapback/swapback/backup/internal/format"
)

// FuzzManifest checks that a manifest that passes the checks is one that can be
// worked with: a table within bounds for every volume, and an ID that is a name.
func FuzzManifest(f *testing.F) {
	r, _ := memRepo(f)
	b := create(f, r, CreateOptions{Tags: []string{"x"}}, source(f, "a", image(1, 10)))
	body, err := json.Marshal(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	b.Volumes[0].Base, b.Volumes[0].ReadBytes, b.Volumes[0].ChangedBytes = b.ID, 100, 50
	if body, err = json.Marshal(b); err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	b.Volumes[0].Base, b.Volumes[0].ChangedBytes, b.Volumes[0].FullBecause = "", 0, "nothing is known"
	b.Volumes[0].Table = Table{}
	b.Volumes[0].Size, b.Volumes[0].DataBytes, b.Volumes[0].ZeroBytes = format.MaxVolume, 0, format.MaxVolume
	if body, err = json.Marshal(b); err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	id := b.ID
	f.Fuzz(func(t *testing.T, body []byte) {
		var m manifest
		var plain Backup
		err := json.Unmarshal(body, &m)
		if err == nil && (json.Unmarshal(body, &plain) != nil || !slices.Equal(m.Tags, plain.Tags) || !slices.Equal(m.Volumes, plain.Volumes)) {
			t.Errorf("%s\nis read as %+v", body, m)
		}
		if err != nil {
			return
		}
		b := m.backup()
		if err := r.checkManifest(b, id); err != nil {
			if !errors.Is(err, format.ErrCorrupt) {
				t.Errorf("error is %v", err)
			}
			return
		}
		if b.ID != id {
			t.Errorf("ID is %q", b.ID)
		}
		if len(b.Volumes) > maxVolumes || len(b.Tags) > maxVolumes || b.Size() <= 0 || b.StoredBytes() < 0 {
			t.Errorf("%d volumes, %d tags, %d bytes, %d stored", len(b.Volumes), len(b.Tags), b.Size(), b.StoredBytes())
		}
		// What passes is written again as the same manifest.
		again, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		var second manifest
		if err := json.Unmarshal(again, &second); err != nil {
			t.Fatalf("%s\nis not read again: %v", again, err)
		}
		if twice, err := json.Marshal(second.backup()); err != nil || !bytes.Equal(again, twice) {
			t.Errorf("%s\ncomes back as\n%s\n%v", again, twice, err)
		}
		for _, v := range b.Volumes {
			if v.Base != "" && !validID(v.Base) || len(v.FullBecause) > maxBecause || v.ReadBytes > v.Size || v.ChangedBytes > v.ReadBytes {
				t.Errorf("made against %q because %.100q, %d read, %d changed", v.Base, v.FullBecause, v.ReadBytes, v.ChangedBytes)
			}
			shape, root, err := v.table()
			if err != nil {
				t.Fatal(err)
			}
			if shape.Size <= 0 || shape.Size > format.MaxVolume || root.Length > format.MaxNode || root.Stored > format.MaxNode {
				t.Errorf("shape %+v, root %+v", shape, root)
			}
			if again := tableOf(root); again != v.Table {
				t.Errorf("table %+v comes back as %+v", v.Table, again)
			}
		}
	})
}

// FuzzRepository has a repository opened by what its config says, and its garbage
// removed by what the note of it says, while somebody holds a lease.
func FuzzRepository(f *testing.F) {
	const held = leaseDir + "/" + "00000000000000000000000000000001"
	r, good := memRepo(f)
	create(f, r, CreateOptions{}, source(f, "a", image(1, 2)))
	needed := good.Names("packs")
	b := create(f, r, CreateOptions{}, source(f, "b", image(2, 2)))
	good.SetObject(backupDir+"/"+b.ID, nil)
	garbage := slices.DeleteFunc(good.Names("packs"), func(name string) bool { return slices.Contains(needed, name) })
	if len(garbage) < 2 {
		f.Fatalf("garbage is %q", garbage)
	}
	conf, err := json.Marshal(r.config)
	if err != nil {
		f.Fatal(err)
	}
	for _, n := range []pending{{garbage, nil}, {garbage[:1], noted{held}}, {append(needed, garbage[1:]...), noted{leaseDir + "/gone"}}} {
		note, err := json.Marshal(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(conf, note)
	}
	f.Fuzz(func(t *testing.T, conf, note []byte) {
		m := good.Clone()
		m.SetObject(configName, textObject(format.TextConfig, conf))
		if r, err := openStore(t.Context(), m, secretOf(m)); err == nil {
			_, bad := format.ShapeOf(1, r.ChunkSize())
			if id, err := uuid.Parse(r.ID()); err != nil || id.String() != r.ID() || format.ID(id) != r.id || bad != nil {
				t.Errorf("repository %q with chunks of %d is open", r.ID(), r.ChunkSize())
			}
		} else if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) || len(err.Error()) > 2048 {
			t.Errorf("error of %d bytes is %.200v", len(err.Error()), err)
		}

		m = good.Clone()
		if _, err := m.Hold(t.Context(), held, nil); err != nil {
			t.Fatal(err)
		}
		m.SetObject(pendingName, textObject(format.TextPending, note))
		before := m.Names("")
		if _, err := view(t, m, 2).Prune(t.Context(), PruneOptions{}); err != nil {
			t.Fatal(err)
		}
		// What is noted goes, unless it is needed or the lease is noted too.
		var n pending
		ended, after := json.Unmarshal(note, &n) == nil && !slices.Contains(n.Leases, held), m.Names("")
		for _, name := range before {
			goes := ended && slices.Contains(n.Packs, name) && slices.Contains(garbage, name)
			if gone := !slices.Contains(after, name); gone != goes && name != pendingName {
				t.Errorf("%s is gone: %v, by the note %s", name, gone, note)
			}
		}
	})
}
