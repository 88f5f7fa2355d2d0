package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

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
	b.Volumes[0].Table = Table{}
	b.Volumes[0].Size, b.Volumes[0].DataBytes, b.Volumes[0].ZeroBytes = format.MaxVolume, 0, format.MaxVolume
	if body, err = json.Marshal(b); err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	id := b.ID
	f.Fuzz(func(t *testing.T, body []byte) {
		var m manifest
		if json.Unmarshal(body, &m) != nil {
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

// FuzzID checks that what passes for an ID can't lead out of a folder.
func FuzzID(f *testing.F) {
	f.Add("20261123T101502Z-3f9a1c07")
	f.Add("../../../etc/passwd-00000000")
	f.Fuzz(func(t *testing.T, id string) {
		if !validID(id) {
			return
		}
		for _, c := range id {
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && c != 'T' && c != 'Z' && c != '-' {
				t.Errorf("%q is an ID", id)
			}
		}
	})
}
