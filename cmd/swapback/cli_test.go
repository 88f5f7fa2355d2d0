package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent"
)

var update = flag.Bool("update", false, "write golden files")

// programEnv makes the test binary the program itself.
const programEnv = "SWAPBACK_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// cli runs command lines against a fake daemon behind a real socket.
type cli struct {
	t      *testing.T
	svc    *fakeService
	socket string
	env    map[string]string
	stdin  string
	tty    bool
	clock  time.Time // stands still unless a test moves it
}

func newCLI(t *testing.T) *cli {
	t.Helper()
	c := &cli{t: t, svc: newFake(), env: map[string]string{hostagent.RunDirEnv: t.TempDir()}, clock: instant}
	// Not t.TempDir: the path of a socket is limited to 107 bytes.
	dir, err := os.MkdirTemp("", "sb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c.socket = filepath.Join(dir, "s")
	ln, err := net.Listen("unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: api.NewHandler(c.svc, nil, "v0.1.0", slog.New(slog.NewTextHandler(t.Output(), nil)))}
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-served })
	return c
}

// run runs one command line and returns what it printed and its exit code.
func (c *cli) run(args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	var out, errOut bytes.Buffer
	a := &app{
		in: strings.NewReader(c.stdin), out: &out, errOut: &errOut, inTTY: c.tty,
		getenv: func(k string) string {
			if v, ok := c.env[k]; ok {
				return v
			}
			if k == api.SocketEnv {
				return c.socket
			}
			return ""
		},
		now:   func() time.Time { return c.clock },
		local: time.UTC,
	}
	code = a.run(c.t.Context(), args)
	return out.String(), errOut.String(), code
}

// golden compares with testdata/NAME.golden, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run the test with -update to make it)", err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func TestOutput(t *testing.T) {
	tests := []struct {
		name string
		line string
		with func(*fakeService)
		code int
	}{
		{name: "pool-list", line: "pool list"},
		{name: "pool-list-failed", line: "pool list", with: func(f *fakeService) {
			f.pools = nil
			f.info.Failed = []api.FailedPool{{Name: "old", Disks: []string{"/dev/sdb"}, Error: "member 1 of 2 is missing"}}
		}},
		{name: "pool-list-json", line: "pool list --json"},
		{name: "pool-show", line: "pool show tank"},
		{name: "pool-show-json", line: "pool show tank --json"},
		{name: "pool-create", line: "pool create tank /dev/nvme0n1 /dev/nvme1n1"},
		{name: "pool-check", line: "pool check tank", with: func(f *fakeService) {
			f.report = api.CheckReport{Pool: "tank", OK: true, Checked: []string{"2 labels", "512 extents, each owned once"}}
		}},
		{name: "pool-check-bad", line: "pool check tank", code: exitFailed, with: func(f *fakeService) {
			f.report = api.CheckReport{Pool: "tank", Checked: []string{"2 labels"}, Problems: []string{"extent 7 of disk 0 is owned by db and log"}}
		}},
		{name: "pool-check-bad-json", line: "pool check tank --json", code: exitFailed, with: func(f *fakeService) {
			f.report = api.CheckReport{Pool: "tank", Checked: []string{}, Problems: []string{"extent 7 of disk 0 is owned by db and log"}}
		}},
		{name: "pool-check-repair", line: "pool check tank --repair", with: func(f *fakeService) {
			f.report = api.CheckReport{Pool: "tank", Checked: []string{"2 labels"}, Problems: []string{"disk /dev/nvme0n1: the swapback label is corrupt"}}
		}},
		{name: "pool-show-degraded", line: "pool show tank", with: func(f *fakeService) {
			f.pools[0].Degraded = true
			m := &f.pools[0].Members[1]
			m.State, m.Problem, m.FreeExtents = api.MemberMissing, "its disk is not there", 0
			f.volumes[0].State, f.volumes[0].Error = api.StateDegraded, "member 1 (/dev/nvme1n1) is missing: its disk is not there"
		}},
		{name: "pool-rejoin", line: "pool rejoin tank"},
		{name: "pool-delete", line: "pool delete tank --yes --force"},
		{name: "volume-list", line: "volume list"},
		{name: "volume-list-empty", line: "volume list", with: func(f *fakeService) { f.volumes = nil }},
		{name: "volume-list-empty-json", line: "volume list --json", with: func(f *fakeService) { f.volumes = nil }},
		{name: "volume-list-backup", line: "volume list", with: func(f *fakeService) {
			f.volumes[0].Snapshot = true
			f.volumes[2].Snapshot, f.volumes[2].SnapshotFull = true, true
		}},
		{name: "volume-show", line: "volume show db"},
		{name: "volume-show-quarantine", line: "volume show tank/db-spare"},
		{name: "volume-show-striped", line: "volume show log"},
		{name: "volume-show-json", line: "volume show log --json"},
		{name: "volume-create", line: "volume create db --size 1G"},
		{name: "volume-attach-read-only", line: "volume attach db-spare --read-only"},
		{name: "volume-delete-json", line: "volume delete db log --yes --json"},
		{name: "volume-holders", line: "volume holders db", with: func(f *fakeService) {
			f.holders = []api.Holder{
				{Kind: "mount", Device: "/dev/ublkb0", Detail: "mounted on /data (ext4)"},
				{Kind: "process", Device: "/dev/ublkb0", PID: 42, Command: "fio", Detail: "open for writing by PID 42 (fio) as /dev/ublkb0"},
			}
		}},
		{name: "volume-holders-none", line: "volume holders db"},
		{name: "swap", line: "swap db db-spare"},
		{name: "swap-two-pairs", line: "swap db db-spare log log --busy refuse"},
		{name: "swap-json", line: "swap db db-spare --json"},
		{name: "swap-in-use", line: "swap db db-spare", code: exitInUse, with: inUse},
		{name: "swap-in-use-json", line: "swap db db-spare --json", code: exitInUse, with: inUse},
		{name: "unknown-volume", line: "volume show dv", code: exitNotFound},
		{name: "unknown-volume-json", line: "volume show dv --json", code: exitNotFound},
		{name: "unknown-volume-far", line: "volume show elephant", code: exitNotFound},
		{name: "unknown-pool", line: "pool show rank", code: exitNotFound},
		{name: "unknown-command", line: "volume sohw db", code: exitUsage},
		{name: "volume-delete-unconfirmed", line: "volume delete db log", code: exitUsage},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			c := newCLI(t)
			if tc.with != nil {
				tc.with(c.svc)
			}
			out, errOut, code := c.run(strings.Fields(tc.line)...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			text := "$ swapback " + tc.line + "\n" + out
			if errOut != "" {
				text += "--- stderr\n" + errOut
			}
			golden(t, tc.name, text)
			if strings.Contains(tc.line, "--json") {
				for _, s := range []string{out, errOut} {
					if s != "" && !json.Valid([]byte(s)) {
						t.Errorf("not one JSON value:\n%s", s)
					}
				}
			}
		})
	}
}

func inUse(f *fakeService) {
	f.fail = &api.Error{
		Code: api.CodeInUse, Message: "swap refused: a device is in use", Remedy: "unmount it",
		Holders: []api.Holder{{Kind: "mount", Device: "/dev/ublkb0", Detail: "mounted on /data (ext4)"}},
	}
}

func TestExitCodes(t *testing.T) {
	for code, want := range map[string]int{
		api.CodeInvalid: exitUsage, api.CodeNotFound: exitNotFound, api.CodeExists: exitFailed,
		api.CodeBusy: exitInUse, api.CodeInUse: exitInUse, api.CodeGeneration: exitRefused,
		api.CodeNoSpace: exitFailed, api.CodeQuarantined: exitRefused, api.CodeUnsupported: exitFailed,
		api.CodeInternal: exitFailed, api.CodeDenied: exitRefused,
	} {
		c := newCLI(t)
		c.svc.fail = &api.Error{Code: code, Message: "it did not work"}
		_, errOut, got := c.run("volume", "grow", "db", "--size", "2G")
		if got != want || !strings.Contains(errOut, "it did not work") {
			t.Errorf("%s: exit code %d, want %d; stderr %q", code, got, want, errOut)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for line, want := range map[string]string{
		"volume create db":                          "give --size",
		"volume create db --size 4MB":               "ambiguous",
		"volume create db --size -5":                "want a number",
		"volume create --size 1G":                   "accepts 1 arg",
		"volume create a b --size 1G":               "accepts 1 arg",
		"volume create db --size 1G --stripes -1":   "want 0 or more",
		"volume create db --size 1G --nonsense":     "unknown flag",
		"volume grow db":                            "give --size",
		"volume quarantine db":                      "give --reason",
		"pool create tank":                          "requires at least 2",
		"swap db":                                   "requires at least 2",
		"swap db log db-spare":                      "has no partner",
		"swap db log --busy maybe":                  "want hold or refuse",
		"swap db log --hold-for 0s":                 "positive duration",
		"swap db log --hold-for soon":               "invalid",
		"swap db log --expect 7":                    "1 generation for 2 volumes",
		"swap db log --expect 7,x":                  "not a generation",
		"swap db log --expect 1,2 --expect 3,4":     "4 generations for 2 volumes",
		"backup list":                               "no repository named",
		"backup restore latest --repo /x":           "one of --onto VOLUME, --to-device DEVICE and --to-file FILE",
		"backup restore b --onto a --to-file c":     "one of --onto VOLUME, --to-device DEVICE and --to-file FILE",
		"backup restore b --onto a --overwrite":     "--overwrite is for --to-file",
		"backup restore b --onto a --allow-larger":  "--allow-larger is for",
		"recover db log --onto spare --repo /x":     "VOLUME=SPARE",
		"recover db --onto log=spare --repo /x":     "not among those",
		"recover db --onto db= --repo /x":           "no spare volume",
		"recover db --onto a --onto db=b --repo /x": "two spare volumes",
		"completion tcsh":                           "invalid argument",
		"pools":                                     "did you mean pool?",
		"frobnicate":                                "see swapback --help",
		"doctor now":                                "unknown command",
		"repo init":                                 "no repository named",
	} {
		t.Run(line, func(t *testing.T) {
			c := newCLI(t)
			out, errOut, code := c.run(strings.Fields(line)...)
			if code != exitUsage || out != "" {
				t.Errorf("exit code %d with output %q", code, out)
			}
			if !strings.Contains(errOut, want) {
				t.Errorf("stderr %q does not say %q", errOut, want)
			}
			if n := len(c.svc.created) + len(c.svc.swaps) + len(c.svc.deleted); n > 0 {
				t.Errorf("%d requests were sent", n)
			}
		})
	}
}

func TestRequests(t *testing.T) {
	seven := 7
	for _, tc := range []struct {
		line string
		want any
	}{
		{"pool create tank /dev/a /dev/b --extent-size 8M --force",
			api.CreatePoolRequest{Name: "tank", Disks: []string{"/dev/a", "/dev/b"}, ExtentSize: 8 << 20, Force: true}},
		{"volume create db --size 1.5G --pool tank --stripes 2 --stripe-size 128K --zero --detached",
			api.CreateVolumeRequest{Pool: "tank", Name: "db", Size: 3 << 29, Stripes: 2, StripeSize: 128 << 10, Zero: true, Detached: true}},
		{"volume grow db --size 2GiB", api.GrowRequest{Size: 2 << 30}},
		{"volume attach db", api.AttachRequest{}},
		{"volume attach db --device 7 --read-only", api.AttachRequest{Device: &seven, ReadOnly: true}},
		{"volume detach db", "detach db"},
		{"volume release db-spare", "release db-spare"},
		{"volume quarantine db --reason odd --expect 9",
			api.QuarantineRequest{Quarantine: api.Quarantine{Reason: "odd", Time: instant}, Generation: 9}},
	} {
		t.Run(tc.line, func(t *testing.T) {
			c := newCLI(t)
			if _, errOut, code := c.run(strings.Fields(tc.line)...); code != exitOK {
				t.Fatalf("exit code %d: %s", code, errOut)
			}
			if d := cmp.Diff([]any{tc.want}, c.svc.created); d != "" {
				t.Errorf("requests (-want +got):\n%s", d)
			}
		})
	}
}

func TestSwapRequest(t *testing.T) {
	c := newCLI(t)
	line := "swap db db-spare tank/log log --expect 7,4 --expect 0,9 --busy refuse --hold-for 1m30s --allow-holders"
	if _, errOut, code := c.run(strings.Fields(line)...); code != exitOK {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	want := []api.SwapRequest{{
		Pairs: []api.SwapPair{
			{A: "db", B: "db-spare", ExpectA: 7, ExpectB: 4},
			{A: "tank/log", B: "log", ExpectB: 9},
		},
		Busy: api.BusyRefuse, HoldFor: 90, AllowHolders: true,
	}}
	if d := cmp.Diff(want, c.svc.swaps); d != "" {
		t.Errorf("request (-want +got):\n%s", d)
	}
}

func TestConfirmation(t *testing.T) {
	tests := []struct {
		name, line, answer string
		tty                bool
		code               int
		deleted            []string
	}{
		{name: "yes", line: "volume delete db", tty: true, answer: "y\n", deleted: []string{"volume 33333333-0000-4000-8000-000000000001 force=false"}},
		{name: "no", line: "volume delete db", tty: true, answer: "n\n", code: exitRefused},
		{name: "only enter", line: "volume delete db", tty: true, answer: "\n", code: exitRefused},
		{name: "end of input", line: "volume delete db", tty: true, code: exitRefused},
		{name: "nobody to ask", line: "volume delete db", answer: "y\n", code: exitUsage},
		{name: "a program on a terminal", line: "volume delete db --json", tty: true, answer: "y\n", code: exitUsage},
		{name: "flag", line: "volume delete db -y", deleted: []string{"volume 33333333-0000-4000-8000-000000000001 force=false"}},
		{name: "evidence", line: "volume delete db-spare --yes", code: exitRefused},
		{name: "evidence with force", line: "volume delete db-spare --yes --force", deleted: []string{"volume 33333333-0000-4000-8000-000000000002 force=true"}},
		{name: "one is unknown", line: "volume delete db nothing --yes", code: exitNotFound},
		{name: "pool", line: "pool delete tank", tty: true, answer: "yes\n", deleted: []string{"pool 11111111-0000-4000-8000-000000000001 force=false"}},
		{name: "pool unconfirmed", line: "pool delete tank", code: exitUsage},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			c := newCLI(t)
			c.tty, c.stdin = tc.tty, tc.answer
			_, errOut, code := c.run(strings.Fields(tc.line)...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d: %s", code, tc.code, errOut)
			}
			if d := cmp.Diff(tc.deleted, c.svc.deleted); d != "" {
				t.Errorf("deletions (-want +got):\n%s", d)
			}
			if tc.code == exitUsage && !strings.Contains(errOut, "--yes") {
				t.Errorf("the flag is not named: %s", errOut)
			}
		})
	}
}

func TestNoDaemon(t *testing.T) {
	c := newCLI(t)
	c.env[api.SocketEnv] = "/nowhere/sock"
	_, errOut, code := c.run("volume", "list", "--json")
	var e errorJSON
	if err := json.Unmarshal([]byte(errOut), &e); err != nil {
		t.Fatalf("%v: %s", err, errOut)
	}
	if code != exitFailed || e.Code != api.CodeUnavailable || e.Remedy == "" || !strings.Contains(e.Message, "/nowhere/sock") {
		t.Errorf("exit code %d, %+v", code, e)
	}
}

func TestInterrupted(t *testing.T) {
	c := newCLI(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := &app{in: strings.NewReader(""), out: io.Discard, errOut: io.Discard, getenv: func(string) string { return "" }, now: time.Now}
	a.target.Socket = c.socket
	if code := a.run(ctx, []string{"volume", "list"}); code != exitInterrupted {
		t.Errorf("exit code %d, want %d", code, exitInterrupted)
	}
}

func TestCompletionOffersNames(t *testing.T) {
	for line, want := range map[string][]string{
		"volume show":          {"db\t", "db-spare\t", "log\t"},
		"swap db":              {"db\t", "log\t"},
		"pool show":            {"tank\t"},
		"volume list --pool":   {"tank\t"},
		"swap db log --busy":   {"hold", "refuse"},
		"completion":           {"bash", "zsh"},
		"volume show db extra": {":4"},
	} {
		c := newCLI(t)
		out, _, _ := c.run(append([]string{"__complete"}, append(strings.Fields(line), "")...)...)
		for _, w := range want {
			if !strings.Contains("\n"+out, "\n"+w) {
				t.Errorf("%s: %q is not offered:\n%s", line, w, out)
			}
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		out, errOut, code := newCLI(t).run("completion", shell)
		if code != exitOK || !strings.Contains(out, "swapback") {
			t.Errorf("%s: exit code %d, %s", shell, code, errOut)
		}
	}
}

// Every command explains itself, with examples that name commands and flags
// that there are.
func TestHelp(t *testing.T) {
	walk(newRoot(&app{getenv: func(string) string { return "" }}), func(cmd *cobra.Command) {
		path := cmd.CommandPath()
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s: lacks a short text, a long text or examples", path)
		}
		if strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: the short text ends in a full stop", path)
		}
		for text := range strings.Lines(cmd.Long) {
			if len(text) > 200 {
				t.Errorf("%s: line of %d bytes", path, len(text))
			}
		}
		for line := range strings.Lines(cmd.Example) {
			checkExample(t, path, strings.TrimSpace(line))
		}
		out, _, code := newCLI(t).run(append(strings.Fields(path)[1:], "--help")...)
		if code != exitOK || !strings.Contains(out, "Exit codes:") {
			t.Errorf("%s --help: exit code %d, or no exit codes in it", path, code)
		}
	})
}

func walk(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, sub := range cmd.Commands() {
		walk(sub, visit)
	}
}

func checkExample(t *testing.T, path, line string) {
	t.Helper()
	line, _, _ = strings.Cut(line, " | ")
	line, _, _ = strings.Cut(line, " > ")
	words, ok := strings.CutPrefix(line, "swapback ")
	if !ok {
		return // another program
	}
	root := newRoot(&app{getenv: func(string) string { return "" }})
	cmd, rest, err := root.Find(strings.Fields(words))
	if err != nil || (cmd.HasSubCommands() && len(rest) > 0) {
		t.Errorf("%s: example %q names no command", path, line)
		return
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Errorf("%s: example %q: %v", path, line, err)
	}
}

func TestOpenAPIAndVersion(t *testing.T) {
	out, _, code := newCLI(t).run("openapi")
	if code != exitOK || !strings.Contains(out, "/v1/swaps") {
		t.Errorf("openapi: exit code %d, no swaps in it", code)
	}
	out, _, code = newCLI(t).run("version", "--json")
	var v map[string]string
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != exitOK || v["version"] == "" {
		t.Errorf("version: exit code %d, %v, %v", code, v, err)
	}
}
