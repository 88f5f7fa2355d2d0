package failpoint_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/swapback/swapback/failpoint/scan"
)

// TestReleaseHasNoPoints builds the programs as they are shipped and looks for
// the name of every point. The same with the tag finds them all, so the search
// is one that finds.
func TestReleaseHasNoPoints(t *testing.T) {
	points, err := scan.Tree("..")
	if err != nil {
		t.Fatal(err)
	}
	if len(points) == 0 {
		t.Fatal("the source has no failpoints")
	}
	shipped, tagged := build(t), build(t, "-tags", "failpoint")
	for _, p := range points {
		if bytes.Contains(shipped, []byte(p.Name)) {
			t.Errorf("a release has the text of failpoint %q (%s:%d)", p.Name, p.File, p.Line)
		}
		if !bytes.Contains(tagged, []byte(p.Name)) {
			t.Errorf("no program has failpoint %q (%s:%d)", p.Name, p.File, p.Line)
		}
	}
	const variable = "SWAPBACK_FAILPOINT"
	if bytes.Contains(shipped, []byte(variable)) || !bytes.Contains(tagged, []byte(variable)) {
		t.Errorf("%s belongs into programs with the tag, and only there", variable)
	}
}

// build returns all programs, one behind the other.
func build(t *testing.T, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	args = append([]string{"build", "-trimpath", "-o", dir + "/"}, args...)
	cmd := exec.Command("go", append(args, "../cmd/...")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 3 {
		t.Fatalf("the programs are %q, %v", files, err)
	}
	var all []byte
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}
