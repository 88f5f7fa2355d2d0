package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// What fio's way makes compresses to a third, and is the same each time.
func TestFioBlocks(t *testing.T) {
	made := func() []byte {
		p := make([]byte, 4<<20)
		f := fillers["fio"](rand.New(rand.NewPCG(1, 1)))
		f.fill(p[:100<<10])
		f.fill(p[100<<10:])
		return p
	}
	p := made()
	if !bytes.Equal(p, made()) {
		t.Error("two of one seed differ")
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	if ratio := float64(len(enc.EncodeAll(p, nil))) / float64(len(p)); ratio < 0.3 || ratio > 0.37 {
		t.Errorf("it is compressed to %.2f", ratio)
	}
}

// The image is what it is said to be: the same each time, a third of each kind,
// with text that zstd makes a quarter of.
func TestImage(t *testing.T) {
	dir := t.TempDir()
	const size = 24 << 20
	var images [][]byte
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(dir, name)
		if err := makeImage(path, size, fillers["text"]); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) != size {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		images = append(images, b)
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("two images of one size differ")
	}
	var zero, other int
	var words []byte
	for p := range slices.Chunk(images[0], block) {
		switch {
		case bytes.Count(p, []byte{0}) == block:
			zero++
		case !slices.ContainsFunc(p, func(c byte) bool { return c >= 0x80 }):
			words = append(words, p...)
		default:
			other++
		}
	}
	const third = size / block / 3
	for name, n := range map[string]int{"zeroes": zero, "text": len(words) / block, "random": other} {
		if n < third-1 || n > third+3 {
			t.Errorf("%d blocks of %s, want %d", n, name, third)
		}
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	packed := 0
	for p := range slices.Chunk(words, 1<<20) { // as programs that back up do
		packed += len(enc.EncodeAll(p, nil))
	}
	if ratio := float64(packed) / float64(len(words)); ratio < 0.2 || ratio > 0.3 {
		t.Errorf("text is compressed to %.2f", ratio)
	}

	offsets, err := changeImage(filepath.Join(dir, "a"), filepath.Join(dir, "c"), 2)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := os.ReadFile(filepath.Join(dir, "c"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for off := 0; off < size; off += block {
		if !bytes.Equal(changed[off:off+block], images[0][off:off+block]) {
			if n == len(offsets) || offsets[n] != int64(off) {
				t.Fatalf("block at %d is changed, and is not the %d. of %d that were said to be", off, n, len(offsets))
			}
			n++
		}
	}
	if got := inChunks([]int64{0, 4096, 1 << 20, 5<<20 + 4096, 6<<20 - 4096, 6 << 20}, 1<<20, 6<<20+8192); got != 3<<20+8192 {
		t.Errorf("changed chunks have %d bytes", got)
	}
	if want := size / block / 100; n < want*9/10 || n > want {
		t.Errorf("%d blocks are changed, want about %d", n, want)
	}
	if at, err := same(filepath.Join(dir, "a"), filepath.Join(dir, "c")); err != nil || at < 0 {
		t.Errorf("difference at %d, %v", at, err)
	}
	if at, err := same(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil || at != -1 {
		t.Errorf("equal files differ at %d, %v", at, err)
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"3G": 3 << 30, "512M": 512 << 20, "8K": 8192, "4096": 4096, "": 0, "1": 0, "-1G": 0, "G": 0, "1T": 0, "M5": 0} {
		if n, err := parseSize(s); n != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", s, n, err)
		}
	}
}

// What a process took is counted, also what its children did.
func TestMeasure(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x")
	s, out, err := measure(t.Context(), command{args: []string{"sh", "-c", `head -c 1048576 /dev/zero > "$X" && sync "$X" && echo done`}, env: []string{"X=" + file}})
	if err != nil || string(out) != "done\n" || s.Seconds <= 0 || s.MaxRSS < 1<<20 {
		t.Errorf("%+v, %q, %v", s, out, err)
	}
	if s.WriteBytes < 1<<20 && s.WriteBytes != 0 { // 0 on tmpfs
		t.Errorf("written %d", s.WriteBytes)
	}
	if _, _, err := measure(t.Context(), command{args: []string{"sh", "-c", "echo because >&2; exit 3"}}); err == nil || !strings.Contains(err.Error(), "because") {
		t.Errorf("failing program: %v", err)
	}
	if _, _, err := parseIO("rchar: 1\nread_bytes: 5\n"); err == nil {
		t.Error("half of the counters are enough")
	}
}

func results() []result {
	r := func(program, row string, seconds ...float64) result {
		var all []sample
		for _, s := range seconds {
			all = append(all, sample{Seconds: s, MaxRSS: int64(s) << 20})
		}
		return summary(program, row, all, 1000)
	}
	return []result{
		r("swapback", rowFull, 7, 5, 6), r("borg", rowFull, 24), r("restic", rowFull, 35),
		r("swapback", rowRestore, 5), r("cp", rowRestore, 4),
	}
}

func TestJudge(t *testing.T) {
	list := results()
	if r := list[0]; r.Seconds != 6 || r.SecondsMin != 5 || r.SecondsMax != 7 || r.MaxRSS != 7<<20 {
		t.Errorf("summary: %+v", r)
	}
	list[0].Stored = 1051
	list = append(list, summary("swapback", rowIncremental, []sample{{Seconds: 1, ReadBytes: 1090}}, 0))
	var got []string
	for _, x := range judge(report{Results: list, ChangedChunks: 1000, Cache: cacheCold}) {
		got = append(got, x.String())
	}
	want := []string{"times borg’s speed 4.00 ≥ 4.00 ok", "times restic’s speed 5.83 ≥ 6.00 MISSED",
		"smaller peer’s 1.05 ≤ 1.05 MISSED", "cp and fsync 1.25 ≤ 1.30 ok", "written to 1.09 ≤ 1.10 ok"}
	if len(got) != len(want) {
		t.Fatalf("targets: %q", got)
	}
	for i, w := range want {
		if !strings.HasSuffix(strings.Join(strings.Fields(got[i]), " "), w) {
			t.Errorf("%q, want %q", got[i], w)
		}
	}
}

// The page and the JSON hold every figure.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	r, err := describe()
	if err != nil || r.CPUs == 0 || r.Kernel == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	r.Size, r.Rounds, r.Results, r.Versions = 3<<30, 3, results(), map[string]string{"swapback": "v1 <x>", "borg": "b"}
	r.Targets = judge(r)
	if err := writeReport(dir, r); err != nil {
		t.Fatal(err)
	}
	if err := dispatch(t.Context(), []string{"report", dir}); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, pageFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"6.00 s, 512 MiB/s", "5.00 … 7.00", "✗ missed", "✓ held", "v1 &lt;x&gt;", titles[rowRestore]} {
		if !strings.Contains(string(page), want) {
			t.Errorf("page lacks %q", want)
		}
	}
	var text strings.Builder
	if err := printReport(&text, r); err != nil || !strings.Contains(text.String(), "MISSED") {
		t.Errorf("%v:\n%s", err, &text)
	}
}

func TestRefusals(t *testing.T) {
	for _, args := range [][]string{nil, {"run", "x"}, {"run", "-rounds", "0"}, {"run", "-size", "1"}, {"report"}, {"run", "-programs", "tar", "-dir", t.TempDir()}} {
		if err := dispatch(t.Context(), args); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
	// A folder that is there already is not ours to remove.
	dir := t.TempDir()
	keep := filepath.Join(dir, "keep")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := dispatch(t.Context(), []string{"run", "-programs", "cp", "-dir", dir}); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Error(err)
	}
}

// A whole run, of what is on every machine.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	work := filepath.Join(dir, "work")
	err := dispatch(t.Context(), []string{"run", "-programs", "cp", "-size", "2M", "-rounds", "2", "-dir", work, "-out", dir})
	if err != nil {
		t.Fatal(err)
	}
	r, err := readReport(dir)
	if err != nil || len(r.Results) != 1 || len(r.Results[0].Samples) != 2 || r.Results[0].Program != "cp" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := os.Stat(work); !os.IsNotExist(err) {
		t.Errorf("the folder is left: %v", err)
	}
}
