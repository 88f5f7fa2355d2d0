package runner

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent/job"
	"github.com/swapback/swapback/hostagent/story"
)

// TestUnmountWhatAStepHasUnmounted: a step may unmount its volume, to check it for
// instance, and fail before it is mounted again.
func TestUnmountWhatAStepHasUnmounted(t *testing.T) {
	dir := t.TempDir()
	device := filepath.Join(dir, "device")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := story.Open(story.Options{Dir: filepath.Join(dir, "log"), Job: "j"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := &run{o: Options{Job: &job.Job{}}, story: s}
	r.o.setDefaults()
	for _, at := range []string{dir, filepath.Join(dir, "removed")} {
		v := &volume{want: job.Volume{Mount: at}, dir: at, mounted: true, v: api.Volume{Pool: "tank", Name: "db", Device: device}}
		if err := r.unmount(t.Context(), v); err != nil || v.mounted {
			t.Errorf("unmount of what is not mounted on %s: %v, mounted: %v", at, err, v.mounted)
		}
	}
}
