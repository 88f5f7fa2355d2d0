package backup

import (
	"testing"
	"time"

	"github.com/swapback/swapback/backup/internal/store/storetest"
)

func TestProgress(t *testing.T) {
	r, m := memRepo(t)
	m.Before = func(op storetest.Op) error {
		if op.Kind == "write" {
			time.Sleep(20 * time.Millisecond) // so that there is something to see
		}
		return nil
	}
	content := image(1, 60)
	var seen []Progress
	b := create(t, r, CreateOptions{Progress: func(p Progress) { seen = append(seen, p) }}, source(t, "a", content))
	last := seen[len(seen)-1]
	v := b.Volumes[0]
	if last.Phase != PhaseBackup || last.Done != v.Size || last.Total != v.Size || last.Zero != v.ZeroBytes ||
		last.Stored != v.StoredBytes || last.Reused != v.ReusedBytes || last.Changed != v.DataBytes-v.ReusedBytes || last.Remaining != 0 {
		t.Errorf("last is %+v of %+v", last, v)
	}
	for i := 1; i < len(seen); i++ {
		if seen[i].Done < seen[i-1].Done || seen[i].Rate < 0 || seen[i].Remaining < 0 {
			t.Errorf("%d is %+v after %+v", i, seen[i], seen[i-1])
		}
	}
	seen = nil
	res := restore(t, r, RestoreOptions{Backup: b.ID, Target: dirty(t, len(content)), VerifyAfter: true,
		Progress: func(p Progress) { seen = append(seen, p) }})
	phases := map[string]Progress{}
	for _, p := range seen {
		phases[p.Phase] = p
	}
	if p := phases[PhaseRestore]; p.Done != v.Size || p.Stored != res.ReadBytes || p.Zero != v.ZeroBytes {
		t.Errorf("restore ends at %+v", p)
	}
	if p := phases[PhaseVerify]; p.Done != v.Size {
		t.Errorf("verify ends at %+v", p)
	}
}

func TestMeter(t *testing.T) {
	var m meter
	now := time.Unix(0, 0)
	var rate float64
	for i := int64(1); i <= 40; i++ { // 10 s at 1000 per second
		now = now.Add(progressEvery)
		rate = m.add(now, i*250)
	}
	if rate < 999 || rate > 1001 {
		t.Errorf("steady rate is %v", rate)
	}
	if left := m.remaining(5000); left != 5*time.Second {
		t.Errorf("remaining is %v", left)
	}
	for range 80 { // 20 s of nothing
		now = now.Add(progressEvery)
		rate = m.add(now, 10000)
	}
	if rate > 50 {
		t.Errorf("rate after a stall is %v", rate)
	}
	if left := (&meter{}).remaining(1); left != 0 {
		t.Errorf("remaining of an unknown rate is %v", left)
	}
	if left := (&meter{perSecond: 1e-9}).remaining(1 << 60); left <= 0 {
		t.Errorf("remaining overflows to %v", left)
	}
}
