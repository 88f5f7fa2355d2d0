package main

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRowsOfJobFiles(t *testing.T) {
	goals := []string{"randread-4k-qd1", "randread-4k-qd32", "randwrite-4k-qd32", "read-128k-qd8"}
	short, err := rowsOf(".", modeExact, true)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range short {
		names = append(names, r.name)
		if r.file != goalFile {
			t.Errorf("row %s of the short form is measured with %s, want %s", r.name, r.file, goalFile)
		}
	}
	if !slices.Equal(names, goals) {
		t.Errorf("the short form has rows %q, want %q", names, goals)
	}

	full, err := rowsOf(".", modeWall, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range full {
		if r.file != rowsFile {
			t.Errorf("wall mode measures row %s with %s, whose rows are bounded by a number of requests", r.name, r.file)
		}
		base, four := strings.CutSuffix(r.name, "-j4")
		if _, ok := titles[base]; !ok {
			t.Errorf("row %s has no title for the page", r.name)
		}
		if !four && !slices.ContainsFunc(full, func(o row) bool { return o.name == r.name+"-j4" }) {
			t.Errorf("row %s is not measured with four jobs", r.name)
		}
	}
	if len(full) != 2*len(titles) {
		t.Errorf("%d rows, want each of %d with one job and with four", len(full), len(titles))
	}
}

// The rows that both job files have must be the same load.
func TestGoalRowsAreRows(t *testing.T) {
	goals, rows := readJobFile(t, goalFile), readJobFile(t, rowsFile)
	for name, goal := range goals {
		if name == "global" {
			continue
		}
		for _, option := range []string{"rw", "bs", "iodepth"} {
			if goal[option] != rows[name][option] {
				t.Errorf("%s: %s is %q in %s and %q in %s", name, option, goal[option], goalFile, rows[name][option], rowsFile)
			}
		}
	}
}

func readJobFile(t *testing.T, name string) map[string]map[string]string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]string{}
	section := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(s, "]")
			out[section] = map[string]string{}
		} else if k, v, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, ";") {
			out[section][k] = v
		}
	}
	return out
}

func TestSectionsRefusesFilesWithoutRows(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.fio")
	if err := os.WriteFile(empty, []byte("[global]\nbs=4k\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sections(empty); err == nil {
		t.Error("a job file without rows was accepted")
	}
}

func TestParseFio(t *testing.T) {
	const read = `"read":{"iops":1000,"bw_bytes":4096000,"total_ios":30,"clat_ns":{"percentile":{"50.000000":2000,"99.000000":9000,"99.900000":10000}}}`
	const write = `"write":{"iops":500,"bw_bytes":2048000,"total_ios":15,"clat_ns":{"percentile":{"50.000000":4000,"99.000000":5000,"99.900000":6000}}}`
	for name, c := range map[string]struct {
		text string
		want sample
		ios  float64
	}{
		"reads":    {`{"jobs":[{"error":0,` + read + `}]}`, sample{iops: 1000, mbps: 4.096, p50: 2, p99: 9, p999: 10}, 30},
		"writes":   {`{"jobs":[{"error":0,` + write + `}]}`, sample{iops: 500, mbps: 2.048, p50: 4, p99: 5, p999: 6}, 15},
		"mixed":    {`{"jobs":[{"error":0,` + read + `,` + write + `}]}`, sample{iops: 1500, mbps: 6.144, p50: 2, p99: 9, p999: 10}, 45},
		"warnings": {"fio: this is deprecated\n" + `{"jobs":[{"error":0,` + read + `}]}`, sample{iops: 1000, mbps: 4.096, p50: 2, p99: 9, p999: 10}, 30},
	} {
		got, ios, err := parseFio([]byte(c.text))
		if err != nil || got != c.want || ios != c.ios {
			t.Errorf("%s: got %+v, %v requests, %v; want %+v and %v", name, got, ios, err, c.want, c.ios)
		}
	}
	for _, bad := range []string{
		``, `{`, `{"jobs":[]}`, `{"jobs":[{"error":5}]}`, `{"jobs":[{"error":0}]}`,
		`{"jobs":[{"error":0,` + read + `},{"error":0,` + read + `}]}`, // reported job by job
	} {
		if _, _, err := parseFio([]byte(bad)); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func TestSummaryIsTheMiddleOfEachFigureAndTheSpread(t *testing.T) {
	r := summarize([]sample{
		{iops: 3, mbps: 1, p50: 9, serverCPU: 5},
		{iops: 1, mbps: 2, p50: 7, serverCPU: 6},
		{iops: 2, mbps: 3, p50: 8, serverCPU: 4},
	})
	want := result{IOPS: 2, MBps: 2, P50: 8, ServerCPU: 5, IOPSMin: 1, IOPSMax: 3, Rounds: 3}
	if r != want {
		t.Errorf("got %+v, want %+v", r, want)
	}
	if r := summarize([]sample{{iops: 1}, {iops: 5}}); r.IOPS != 1 {
		t.Errorf("of two rounds %v came out, which was not measured", r.IOPS)
	}
}

func TestResultsComeBackAsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "result.json")
	list := []result{
		exactly("raw", "r", 100),
		{Mode: modeExact, Subject: "volume-batch", Missing: "not on this kernel (needs 7.0)"},
	}
	list[0].P999, list[0].DataPath, list[0].versions = 1.5, "copy", versions{Kernel: "7", QEMU: "8", Fio: "fio-3", Go: "go1", Bench: "x"}
	if err := writeJSON(path, list); err != nil {
		t.Fatal(err)
	}
	got, err := readResults(path)
	if err != nil || !slices.Equal(got, list) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestDecodeResultsRefuses(t *testing.T) {
	for _, bad := range []string{
		``, `{}`, `[{"mode":"fast","subject":"raw","row":"r","iops":1,"iops_max":1}]`,
		`[{"mode":"exact","row":"r","iops":1,"iops_max":1}]`,
		`[{"mode":"exact","subject":"raw","iops":1,"iops_max":1}]`,
		`[{"mode":"exact","subject":"raw","row":"r"}]`,
		`[{"mode":"exact","subject":"raw","row":"r","iops":5,"iops_max":1}]`,
		`[{"mode":"exact","subject":"raw","row":"r","iops":1,"iops_max":1},{"mode":"exact","subject":"raw","row":"r","iops":1,"iops_max":1}]`,
	} {
		if _, err := decodeResults([]byte(bad)); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func TestRatios(t *testing.T) {
	list := []result{exactly("raw", "r", 100), exactly("loop", "r", 50), exactly("volume-copy", "r", 25), exactly("volume-copy", "other", 25)}
	addRatios(list)
	if v := list[2]; v.RatioRaw != 0.25 || v.RatioLoop != 0.5 {
		t.Errorf("ratios %v and %v", v.RatioRaw, v.RatioLoop)
	}
	remote := []result{exactly("nvmet-1", "r", 50), exactly("nvmet-4", "r", 80), exactly("export-4", "r", 100), exactly("export-1", "other", 100)}
	addRatios(remote)
	if a, b := remote[2].RatioNVMeT, remote[3].RatioNVMeT; a != 1.25 || b != 0 {
		t.Errorf("ratios to the kernel's target: %v, and %v without a figure of it", a, b)
	}
	if v := list[3]; v.RatioRaw != 0 || v.RatioLoop != 0 {
		t.Errorf("a row that raw and loop have not has ratios %v and %v", v.RatioRaw, v.RatioLoop)
	}
}

func TestSubjectsHaveOneNameAndColourEach(t *testing.T) {
	names, colours := map[string]bool{}, map[string]bool{}
	for _, s := range subjects() {
		if names[s.name] || colours[s.colour] || s.colour == "" || s.about == "" || s.start == nil {
			t.Errorf("subject %+v is a double, or not complete", s.name)
		}
		if (s.needs == 0) != (s.since == "") {
			t.Errorf("subject %s needs %v since %q: want both or none", s.name, s.needs, s.since)
		}
		names[s.name], colours[s.colour] = true, true
	}
	if missing := (&subject{needs: 1 << 15, since: "7.0"}).missing(&stage{}); missing != "not on this kernel (needs 7.0)" {
		t.Errorf("a subject that this kernel lacks: %q", missing)
	}
}

func TestChoose(t *testing.T) {
	self := func(s string) string { return s }
	got, err := choose([]string{"a", "b", "c"}, self, "c,a")
	if err != nil || !slices.Equal(got, []string{"c", "a"}) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := choose([]string{"a", "b"}, self, "x"); err == nil || !strings.Contains(err.Error(), "there are a, b") {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestReadCPUCountsWorkersOfTheKernel(t *testing.T) {
	root := t.TempDir()
	put := func(pid, comm, schedstat string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, pid), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"comm": comm, "schedstat": schedstat} {
			if err := os.WriteFile(filepath.Join(root, pid, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	put("7", "kworker/u8:1-loop0\n", "1000000000 5 1\n")
	put("8", "kworker/0:2\n", "9000000000 5 1\n")
	put("9", "fio\n", "4000000000 5 1\n")
	put("self", "kworker/x\n", "1 1 1\n")
	before, err := readCPU(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	put("7", "kworker/u8:1-events\n", "1500000000 5 1\n")
	if err := os.RemoveAll(filepath.Join(root, "8")); err != nil { // it ended
		t.Fatal(err)
	}
	put("10", "kworker/u8:3-loop0\n", "250000000 5 1\n") // it is new
	after, err := readCPU(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := after.since(before); math.Abs(got-0.75) > 1e-9 {
		t.Errorf("%v s, want 0.75", got)
	}
	// The process clock of a process that is there: this one.
	self, err := readCPU(root, []int{os.Getpid()})
	if err != nil || self.server <= 0 {
		t.Errorf("own processor time %v, %v", self.server, err)
	}
}

// exactly is a result of exact mode for tests.
func exactly(subject, row string, iops float64) result {
	return result{Mode: modeExact, Subject: subject, Row: row, IOPS: iops, IOPSMin: iops, IOPSMax: iops, Rounds: 1}
}

func FuzzParseFio(f *testing.F) {
	f.Add([]byte(`{"jobs":[{"error":0,"read":{"iops":1,"total_ios":1}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if got, ios, err := parseFio(text); err == nil && (ios <= 0 || got.iops <= 0) {
			t.Error("no error although no request was made")
		}
	})
}

func FuzzDecodeResults(f *testing.F) {
	f.Add([]byte(`[{"mode":"exact","subject":"raw","row":"r","iops":5,"iops_min":5,"iops_max":5}]`))
	f.Add([]byte(`[{"mode":"wall","subject":"volume-batch","missing":"not on this kernel"}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := decodeResults(text)
		if err != nil {
			return
		}
		// Whatever is accepted can be shown and compared.
		var out strings.Builder
		if err := printTable(&out, list); err != nil {
			t.Error(err)
		}
		if err := renderReport(&out, list, nil, nil); err != nil {
			t.Error(err)
		}
		changes, onlyOld, onlyNew := compareResults(list, list)
		for _, c := range changes {
			if c.beyond {
				t.Errorf("%v differs from itself", c.key)
			}
		}
		if len(onlyOld)+len(onlyNew) > 0 {
			t.Errorf("%v and %v are only in one of a run and itself", onlyOld, onlyNew)
		}
		_ = checkBaseline(&out, list, list)
	})
}

func FuzzDecodePoints(f *testing.F) {
	f.Add([]byte(`[{"mode":"exact","series":"rss","n":1,"value":5},{"mode":"exact","series":"rss","n":2,"value":9}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		points, err := decodePoints(text)
		if err != nil {
			return
		}
		var out strings.Builder
		printScaling(&out, points)
		if err := renderReport(&out, nil, points, nil); err != nil {
			t.Error(err)
		}
	})
}
