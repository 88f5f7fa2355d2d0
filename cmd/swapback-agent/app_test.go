package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent/job"
	"github.com/swapback/swapback/hostagent/runner"
)

// agent runs a command line against folders of its own and no daemon.
func agent(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	dir := t.TempDir()
	var o, e bytes.Buffer
	a := &app{out: &o, errOut: &e, stop: make(chan struct{}), getenv: func(name string) string {
		return map[string]string{"STATE_DIRECTORY": dir + "/state", "LOGS_DIRECTORY": dir + "/log"}[name]
	}}
	args = append([]string{"--run-dir", dir + "/run", "--socket", dir + "/none.sock"}, args...)
	code = a.run(t.Context(), args)
	return code, o.String(), e.String()
}

// TestAnotherMachinesDaemon: the flags and the environment say which, and with what.
func TestAnotherMachinesDaemon(t *testing.T) {
	file := write(t, "name: j\nrepository: /r\nvolumes: [{name: a}]\nsteps: [{name: s, run: 'true'}]\n")
	env := map[string]string{api.ServerEnv: "storage.example.com", api.CertEnv: "/no/such.pem"}
	for want, flags := range map[string][]string{
		"/no/such.pem":  nil,
		"/other.pem":    {"--cert", "/other.pem"},
		"nobody":        {"--socket", "/nobody"},
		"--socket for":  {"--socket", "/nobody", "--server", "x"},
		`"port"`:        {"--server", "x:port"},
		"is no address": {"--server", "::1::2"},
	} {
		var o, e bytes.Buffer
		a := &app{out: &o, errOut: &e, stop: make(chan struct{}), getenv: func(name string) string { return env[name] }}
		code := a.run(t.Context(), append([]string{"check", file, "--run-dir", t.TempDir(), "--state-dir", t.TempDir()}, flags...))
		if code != runner.ExitRefused || !strings.Contains(o.String()+e.String(), want) {
			t.Errorf("%q: exit code %d, no %q in %s%s", flags, code, want, o.String(), e.String())
		}
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "job.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExample(t *testing.T) {
	code, out, _ := agent(t, "example")
	if _, err := job.Parse("example", []byte(out)); code != 0 || err != nil {
		t.Errorf("%d %v", code, err)
	}
}

func TestExitCodes(t *testing.T) {
	good := write(t, "name: j\nrepository: /r\nvolumes: [{name: a}]\nsteps: [{name: s, run: 'true'}]\n")
	bad := write(t, "name: j\nvolumes: 5\n")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"version"}, 0, "swapback-agent"},
		{[]string{"--help"}, 0, "Exit codes: 0 all steps done"},
		{[]string{"run", "--help"}, 0, "SIGTERM"},
		{[]string{"status"}, 0, "no job has run here"},
		{[]string{"status", "j"}, 2, "never run here"},
		{[]string{"nonsense"}, 2, "unknown command"},
		{[]string{"run"}, 2, "arg"},
		{[]string{"run", "--nonsense", good}, 2, "nonsense"},
		{[]string{"run", "/no/such.yaml"}, 2, "no such file"},
		{[]string{"run", bad}, 2, "job.yaml:2:10: volumes: want a list"},
		{[]string{"check", bad}, 2, `"repository" is missing`},
		{[]string{"run", good}, 2, "no swapbackd"},
		{[]string{"check", good}, 2, "no swapbackd"},
	} {
		code, out, errOut := agent(t, c.args...)
		if code != c.code || !strings.Contains(out+errOut, c.want) {
			t.Errorf("%q: exit code %d, want %d\n%s%s", c.args, code, c.code, out, errOut)
		}
	}
}

func TestJSON(t *testing.T) {
	bad := write(t, "name: j\nvolumes: 5\n")
	code, out, errOut := agent(t, "check", "--json", bad)
	var e struct {
		Code     string
		Mistakes []job.Mistake
	}
	if err := json.Unmarshal([]byte(errOut), &e); err != nil || code != runner.ExitRefused || out != "" || e.Code != "invalid" || len(e.Mistakes) != 3 {
		t.Errorf("%d %q %q %v", code, out, errOut, err)
	}
	if code, out, _ := agent(t, "status", "--json"); code != 0 || strings.TrimSpace(out) != "[]" {
		t.Errorf("%d %q", code, out)
	}
}
