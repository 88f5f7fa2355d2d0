package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/table"
)

// scaleEnv has TestScale run: it takes some minutes, 8 GiB of disk, and a file
// system with files of a TiB.
const scaleEnv = "SWAPBACK_SCALE"

// scaled is what an incremental backup took, in a process of its own.
type scaled struct {
	Seconds float64
	CPU     float64 // seconds; filled in by the parent
	Peak    int64   // resident memory, bytes
	Backup  Backup
}

// runScale is the child: one incremental backup on top of base. What changed is read
// from a file beside the image.
func runScale(base string) error {
	ctx, path := context.Background(), os.Getenv(imageEnv)
	body, err := os.ReadFile(path + ".changes")
	if err != nil {
		return err
	}
	ch := &Changes{Base: base}
	if err := json.Unmarshal(body, &ch.Ranges); err != nil {
		return err
	}
	start := time.Now()
	r, err := Open(ctx, os.Getenv(repoEnv), Secret{})
	if err != nil {
		return err
	}
	defer r.Close()
	var s scaled
	if s.Backup, err = r.Create(ctx, []Source{{Path: path, Volume: VolumeRef{Name: "v", UUID: "u"}, Changes: ch}}, CreateOptions{}); err != nil {
		return err
	}
	s.Seconds = time.Since(start).Seconds()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	kib := regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(status)
	if kib == nil {
		return fmt.Errorf("no VmHWM in %s", status)
	}
	n, err := strconv.ParseInt(string(kib[1]), 10, 64)
	s.Peak = n << 10
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// scaleVolume is a sparse file, its repository, and the last backup there.
type scaleVolume struct {
	t     *testing.T
	size  int64
	image string
	repo  *Repository
	last  string
	runs  []scaled
}

func newScaleVolume(t *testing.T, size int64) *scaleVolume {
	t.Helper()
	dir := t.TempDir()
	s := &scaleVolume{t: t, size: size, image: filepath.Join(dir, "image")}
	if err := os.WriteFile(s.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.image, size); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.repo, err = Init(t.Context(), filepath.Join(dir, "repo"), InitOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.repo.Close() })
	// A full backup of a sparse TiB would read all of its zeroes, for minutes.
	s.last = zeroBackup(t, s.repo, VolumeRef{Name: "v", UUID: "u"}, size)
	return s
}

// fill makes the base one of a volume without zeroes: its chunks are those of a small
// file, over and over, and no two nodes of its table are the same. The image is left
// as it is, as nobody reads what has not changed.
func (s *scaleVolume) fill() {
	t, r, ctx := s.t, s.repo, s.t.Context()
	t.Helper()
	const n = format.Fanout + 1
	small := filepath.Join(t.TempDir(), "small")
	f, err := os.Create(small)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range n {
		if _, err := f.Write(bytes.Repeat(fmt.Appendf(nil, "%08d", i), DefaultChunkSize/8)); err != nil {
			t.Fatal(err)
		}
	}
	v := create(t, r, CreateOptions{}, Source{Path: small, Volume: VolumeRef{Name: "small"}}).Volumes[0]
	reader, err := r.newReader()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	smallShape, smallRoot, err := v.table()
	if err != nil {
		t.Fatal(err)
	}
	var refs []format.Ref
	cursor := table.NewCursor(table.Tree{Shape: smallShape, Root: smallRoot,
		Read: func(ref format.Ref, dst []byte) error { return reader.Read(ctx, ref, dst) }})
	for i := range int64(n) {
		ref, err := cursor.Entry(1, i*DefaultChunkSize)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	session, err := r.begin(ctx, "backup", logger(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer session.end()
	c, err := r.newCreation(session, CreateOptions{}, 1, logger(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.progress = track(PhaseBackup, 0, -1, nil)
	dense := BackupVolume{VolumeRef: VolumeRef{Name: "v", UUID: "u", Size: s.size}, ChunkSize: DefaultChunkSize, DataBytes: s.size}
	shape, err := format.ShapeOf(s.size, DefaultChunkSize)
	if err != nil {
		t.Fatal(err)
	}
	b := table.NewBuilder(shape, nil, func(node []byte, was format.Ref) (format.Ref, error) { return c.node(ctx, &dense, node, was) })
	for i := range shape.Chunks() {
		if err := b.Append(refs[(i+i/format.Fanout)%n]); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	dense.Table = tableOf(root)
	made := Backup{Created: r.now(), Volumes: []BackupVolume{dense}}
	if err := c.commit(ctx, &made); err != nil {
		t.Fatal(err)
	}
	s.last = made.ID
}

// round writes random bytes to all places, backs up in a child, and deletes the
// backup before.
func (s *scaleVolume) round(places []Range, seed byte) {
	s.t.Helper()
	f, err := os.OpenFile(s.image, os.O_WRONLY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	cc := rand.NewChaCha8([32]byte{seed})
	p := make([]byte, DefaultChunkSize)
	for _, r := range places {
		for off := r.Offset; off < r.Offset+r.Length; off += int64(len(p)) {
			cc.Read(p)
			if _, err := f.WriteAt(p, off); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	if err := f.Sync(); err != nil {
		s.t.Fatal(err)
	}
	body, err := json.Marshal(places)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(s.image+".changes", body, 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=scale "+s.last, repoEnv+"="+s.repo.Location(), imageEnv+"="+s.image)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("%v: %s", err, errOut.String())
	}
	var run scaled
	if err := json.Unmarshal(out.Bytes(), &run); err != nil {
		s.t.Fatal(err)
	}
	run.CPU = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	v := run.Backup.Volumes[0]
	if v.Base != s.last || v.ReadBytes != scaleChanged || v.ChangedBytes != scaleChanged {
		s.t.Fatalf("made against %q, %d bytes read, %d changed: %+v", v.Base, v.ReadBytes, v.ChangedBytes, v)
	}
	if _, _, err := s.repo.Delete(s.t.Context(), s.last); err != nil {
		s.t.Fatal(err)
	}
	s.last = run.Backup.ID
	s.runs = append(s.runs, run)
}

// median leaves out the first round, which filled an empty volume.
func (s *scaleVolume) median(of func(scaled) float64) float64 {
	var all []float64
	for _, r := range s.runs[1:] {
		all = append(all, of(r))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

const scaleChanged = 1 << 30

// An incremental backup of 1 GiB that changed takes as long, and as much memory, on
// a sparse volume of 1 TiB as on one of 16 GiB. Where nothing is zero and no two
// changes are near each other, each changed MiB has a node of 64 KiB above it to be
// read and written: that takes longer, and no more memory.
func TestScale(t *testing.T) {
	if os.Getenv(scaleEnv) == "" {
		t.Skipf("set %s=1 to run it", scaleEnv)
	}
	const dense = "scattered, nothing is zero"
	for _, layout := range []string{"scattered", "in one piece", dense} {
		t.Run(layout, func(t *testing.T) {
			volumes := []*scaleVolume{newScaleVolume(t, 16<<30), newScaleVolume(t, 1<<40)}
			if layout == dense {
				for _, s := range volumes {
					s.fill()
				}
			}
			for round := range byte(6) {
				for _, s := range volumes {
					places := scattered(s.size, scaleChanged)
					if layout == "in one piece" {
						places = []Range{{s.size / 2, scaleChanged}}
					}
					s.round(places, round)
				}
			}
			var seconds, cpu, peaks []float64
			for _, s := range volumes {
				seconds = append(seconds, s.median(func(r scaled) float64 { return r.Seconds }))
				cpu = append(cpu, s.median(func(r scaled) float64 { return r.CPU }))
				peaks = append(peaks, s.median(func(r scaled) float64 { return float64(r.Peak) }))
				i := len(peaks) - 1
				t.Logf("%5d GiB, %s: %.2f s, %.2f s of CPU, %.0f MiB peak, %d bytes stored beside the data", s.size>>30, layout,
					seconds[i], cpu[i], peaks[i]/(1<<20), s.runs[len(s.runs)-1].Backup.StoredBytes()-scaleChanged)
			}
			t.Logf("time × %.2f, CPU × %.2f, memory × %.2f", seconds[1]/seconds[0], cpu[1]/cpu[0], peaks[1]/peaks[0])
			if layout != dense && seconds[1] > 1.3*seconds[0] || peaks[1] > 1.3*peaks[0] {
				t.Error("want at most × 1.3")
			}
		})
	}
}

// scattered chooses chunks of n bytes together, always the same ones.
func scattered(size, n int64) (places []Range) {
	rnd := rand.New(rand.NewPCG(1, uint64(size)))
	chosen := make(map[int64]bool)
	for int64(len(chosen)) < n/DefaultChunkSize {
		chosen[rnd.Int64N(size/DefaultChunkSize)] = true
	}
	for i := range chosen {
		places = append(places, Range{i * DefaultChunkSize, DefaultChunkSize})
	}
	slices.SortFunc(places, func(a, b Range) int { return int(min(max(a.Offset-b.Offset, -1), 1)) })
	return places
}
