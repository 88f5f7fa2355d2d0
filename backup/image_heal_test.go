package backup

import "testing"

// What an open image could not read back it can when that was healed meanwhile.
func TestImageSeesAHeal(t *testing.T) {
	r, m, want, from := sick(t)
	list, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	last := list[len(list)-1]
	content := want[last.ID]["a"]
	const at = 30 * testChunk // the tail, which is not zero
	ref, err := r.chunkAt(t.Context(), last.Volumes[0], at)
	if err != nil {
		t.Fatal(err)
	}
	damage(t, m, ref)
	im, err := view(t, m, 40).OpenImage(t.Context(), last.ID, "a", ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	p := make([]byte, 512)
	read := func() error {
		_, err := im.ReadAt(t.Context(), p, at)
		return err
	}
	wantErr(t, "damaged", read(), ErrDamaged, "")
	im.seekHealed(t.Context())
	wantErr(t, "nothing is healed", read(), ErrDamaged, "")
	heal(t, m, HealOptions{From: from})
	im.seekHealed(t.Context())
	if err := read(); err != nil || string(p) != string(content[at:]) {
		t.Errorf("healed: %v", err)
	}
	if bad := im.Damage(); len(bad) != 0 {
		t.Errorf("damage: %+v", bad)
	}
}
