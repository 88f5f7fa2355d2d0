package volume

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/nvmeof/auth"
)

const testHost = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"

func newSecret(t testing.TB, h auth.Hash) string {
	t.Helper()
	s, err := auth.NewSecret(h)
	if err != nil {
		t.Fatal(err)
	}
	return s.Text()
}

func TestSecretsAreRead(t *testing.T) {
	one, two, own := newSecret(t, auth.SHA256), newSecret(t, auth.SHA512), newSecret(t, auth.SHA384)
	text := "# hosts of the database\n\n  " + testHost + "\t" + one + "  \nnqn.2026-01.org.example:two " + two + " " + own + "\r\n"
	all, err := parseSecrets([]byte(text))
	if err != nil || len(all) != 2 {
		t.Fatalf("%d hosts, %v", len(all), err)
	}
	if s := all[testHost]; s.host.Text() != one {
		t.Error("the first host has another secret")
	}
	if s := all["nqn.2026-01.org.example:two"]; s.host.Text() != two || s.own.Text() != own {
		t.Error("the second host has other secrets")
	}
}

// TestSecretsThatAreWrong: the error names the line, and never what is in it.
func TestSecretsThatAreWrong(t *testing.T) {
	secret := newSecret(t, auth.SHA256)
	good := testHost + " " + secret + "\n"
	for name, line := range map[string]string{
		"no secret":         testHost,
		"no host":           "host " + secret,
		"too much":          testHost + "x " + secret + " " + secret + " " + secret,
		"no such secret":    testHost + "x " + secret[:20],
		"no such own one":   testHost + "x " + secret + " " + secret + "x",
		"a host again":      testHost + " " + secret,
		"a line that is no": strings.Repeat("x", 1<<17),
	} {
		_, err := parseSecrets([]byte(good + line + "\n"))
		if err == nil {
			t.Errorf("%s: it was read", name)
			continue
		}
		if strings.Contains(err.Error(), secret[8:20]) || name != "a line that is no" && !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSecretsShutOut: whatever is wrong with the file, nobody gets in by it.
func TestSecretsShutOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secrets")
	secret := newSecret(t, auth.SHA256)
	c := &Controller{log: slog.New(slog.DiscardHandler), nvme: &nvme{secrets: secrets{path: path}}}
	open, closed := &remote{name: "tank/open"}, &remote{name: "tank/closed"}
	closed.authenticate.Store(true)
	// ask says whether a host has to prove something, and whether it is its own secret.
	ask := func(r *remote, host string) (asked, its bool) {
		cfg, asked := c.authenticate(r, host)
		return asked, asked && cfg.Secret.Text() == secret
	}
	want := func(what string, r *remote, host string, asked, its bool) {
		t.Helper()
		if a, i := ask(r, host); a != asked || i != its {
			t.Errorf("%s: asked %v, for its own secret %v", what, a, i)
		}
	}
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	want("no file", open, testHost, true, false)
	write(testHost+" "+secret+"\n", 0o600)
	want("a host with a secret", open, testHost, true, true)
	want("a host with a secret, where one is needed", closed, testHost, true, true)
	write(testHost+" "+newSecret(t, auth.SHA256)+"\n", 0o600)
	want("a secret that has been replaced", open, testHost, true, false)
	write(testHost+" "+secret+"\n", 0o600)
	want("and put back", open, testHost, true, true)
	want("a host without", open, testHost+"x", false, false)
	want("a host without, where one is needed", closed, testHost+"x", true, false)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
		write(testHost+" "+secret+"\n", mode)
		want("a file of mode "+mode.String(), open, testHost, true, false)
	}
	write("nonsense\n", 0o600)
	want("nonsense", open, testHost+"x", true, false)
	if err := c.nvme.secrets.check(); err == nil {
		t.Error("nonsense passes the check")
	}
	write(strings.Repeat("#", maxSecrets+1), 0o600)
	want("a large file", open, testHost+"x", true, false)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	want("a folder", open, testHost, true, false)
	c.nvme.secrets.path = ""
	want("no secrets at all", open, testHost, false, false)
	want("no secrets at all, where one is needed", closed, testHost, true, false)
	if err := c.nvme.secrets.check(); err != nil {
		t.Error(err)
	}
}

// FuzzSecrets: no text makes it panic, and a secret that is read is one.
func FuzzSecrets(f *testing.F) {
	s := newSecret(f, auth.SHA256)
	for _, text := range []string{"", "#", testHost + " " + s, testHost + " " + s + " " + s + "\n# x\nnqn.2026-01.org.example:two " + s, testHost, "x y z"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := parseSecrets(text)
		if err != nil {
			return
		}
		for host, s := range all {
			if back, err := auth.ParseSecret(s.host.Text()); err != nil || back.Text() != s.host.Text() || host == "" {
				t.Errorf("host %q: its secret does not survive: %v", host, err)
			}
		}
	})
}
