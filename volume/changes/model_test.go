package changes

import (
	"testing"
)

// TestNoChangeIsMissed plays random histories of a volume with backups, kills and
// power cuts at every kind of moment, and holds the map against what was truly
// written since the base.
func TestNoChangeIsMissed(t *testing.T) {
	histories := int64(400)
	if testing.Short() {
		histories = 40
	}
	confirmed, kept, crashes := 0, 0, 0
	for seed := range histories {
		w := newWorld(t, seed, 6)
		token, backup := "", ""
		for range 60 {
			if w.rng.Intn(6) == 0 {
				w.deadline = w.effects + 1 + w.rng.Intn(12)
			}
			switch op := w.rng.Intn(12); {
			case op < 5:
				first := w.rng.Intn(len(w.content))
				w.write(first, 1+w.rng.Intn(min(9, len(w.content)-first)))
			case op < 7:
				token, backup = w.cut()
			case op < 9:
				if token != "" && w.confirm(token, backup) {
					confirmed++
				}
				token = ""
			case op == 9:
				copy(w.durable, w.content) // somebody has flushed
			case op == 10:
				w.grow()
			default:
				w.die()
			}
			if !w.isDead() {
				continue
			}
			crashes++
			token = ""
			before := w.base.Backup
			if w.rng.Intn(3) == 0 {
				w.powerCut()
			} else {
				w.kill()
			}
			if before != "" && w.m.Info().Base.Backup == before {
				kept++
			}
		}
		w.m.Cut(w.m.since)
		w.mustCover("at the end")
	}
	// A test that never came to what it is about has shown nothing.
	if confirmed < int(histories) || kept < int(histories) || crashes < int(histories) {
		t.Errorf("%d backups confirmed, %d crashes, after %d of which there was a base", confirmed, crashes, kept)
	}
}

// TestEveryCrashOfABackup stops the daemon before each single effect of a history
// with all that matters in it, and goes on.
func TestEveryCrashOfABackup(t *testing.T) {
	for _, power := range []bool{false, true} {
		points := 0
		for deadline := 1; ; deadline++ {
			w := newWorld(t, int64(deadline), 6)
			history := func() {
				w.write(0, 3)
				token, backup := w.cut()
				w.write(2, 1)
				w.write(9, 4)
				w.confirm(token, backup)
				w.write(20, 1)
				token, backup = w.cut()
				w.write(21, 1)
				w.confirm(token, backup)
				w.write(0, 1)
			}
			w.deadline = w.effects + deadline
			history()
			if !w.isDead() {
				break
			}
			points++
			if power {
				w.powerCut()
			} else {
				w.kill()
			}
			w.write(5, 1)
			token, backup := w.cut()
			w.write(6, 1)
			if !w.confirm(token, backup) {
				t.Errorf("effect %d: the backup after it was not confirmed", deadline)
			}
			w.m.Cut(w.m.since)
			w.mustCover("after the next backup")
			w.kill()
		}
		if points < 15 {
			t.Errorf("only %d points to crash at", points)
		}
	}
}
