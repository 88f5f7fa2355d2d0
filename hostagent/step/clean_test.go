package step

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEnvironmentIsExactlyWhatIsDocumented: nothing that we were given ourselves
// gets through, whatever it is called.
func TestEnvironmentIsExactlyWhatIsDocumented(t *testing.T) {
	for _, name := range []string{"SWAPBACK_SOCKET", "SWAPBACK_REPO", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "LD_PRELOAD", "BASH_ENV", "ENV", "IFS"} {
		t.Setenv(name, "/nowhere")
	}
	users := []string{""}
	if os.Geteuid() == 0 {
		users = append(users, "nobody")
	}
	for _, name := range users {
		c := Command{Args: []string{"env"}, User: name, Env: map[string]string{"RATE": "0.25"}}
		u, err := c.account()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		c.Output = &out
		if res, err := Run(t.Context(), c); err != nil || !res.OK() {
			t.Fatalf("%+v %v", res, err)
		}
		got := strings.Split(strings.TrimSpace(out.String()), "\n")
		slices.Sort(got)
		want := []string{
			"HOME=" + u.HomeDir, "LANG=C.UTF-8", "LOGNAME=" + u.Username, "PATH=" + defaultPath, "RATE=0.25", "SHELL=/bin/sh", "USER=" + u.Username,
		}
		if !slices.Equal(got, want) {
			t.Errorf("as user %q the environment is\n%q, want\n%q", name, got, want)
		}
	}
}

// TestGroupsAreTheUsers: the groups of a step are those of its user, and none of ours.
func TestGroupsAreTheUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run a step as another user")
	}
	old, err := unix.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Setgroups([]int{0, 4242}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setgroups(old) }()
	u, err := LookupUser("nobody")
	if err != nil {
		t.Fatal(err)
	}
	want, err := u.GroupIds()
	if err != nil {
		t.Fatal(err)
	}
	_, out := sh(t, "id -G", func(c *Command) { c.User = "nobody" })
	got := strings.Fields(out)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("groups %q, want %q", got, want)
	}
	// Nothing is left by which it could become root again.
	_, out = sh(t, "grep -E '^(Uid|Gid|CapPrm|CapEff|CapAmb):' /proc/self/status", func(c *Command) { c.User = "nobody" })
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		for _, v := range f[1:] {
			if strings.HasPrefix(f[0], "Cap") && strings.Trim(v, "0") != "" || f[0] == "Uid:" && v != u.Uid || f[0] == "Gid:" && v != u.Gid {
				t.Errorf("of user %s: %s", u.Username, line)
			}
		}
	}
}

// TestMaskIsTheUsual: what a step makes does not depend on who started the agent.
func TestMaskIsTheUsual(t *testing.T) {
	for _, ours := range []int{0, 0o077} {
		old := unix.Umask(ours)
		_, out := sh(t, "umask", nil)
		after := unix.Umask(old)
		if out != "0022\n" || after != ours {
			t.Errorf("with our mask %#o the step's is %q, and ours %#o afterwards", ours, out, after)
		}
	}
}

// TestNoDescriptorIsInherited: what our own parent left open stays with us.
func TestNoDescriptorIsInherited(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], 0); err != nil { // without O_CLOEXEC, as a shell leaves it
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	for what, c := range map[string]Command{
		"program": {Args: []string{"ls", "-l", "/proc/self/fd"}},
		"script":  {Script: "ls -l /proc/self/fd"},
	} {
		var out bytes.Buffer
		c.Output = &out
		if res, err := Run(t.Context(), c); err != nil || !res.OK() {
			t.Fatalf("%+v %v", res, err)
		}
		// Standard input, output and error, and the directory that ls reads.
		if n := strings.Count(out.String(), " -> "); n != 4 || strings.Count(out.String(), "pipe:") != 2 || !strings.Contains(out.String(), "0 -> /dev/null") {
			t.Errorf("a %s has %d descriptors:\n%s", what, n, &out)
		}
	}
}

// TestScriptIsNotInTheProcessList: arguments are shown to every user of the
// machine (proc_pid_cmdline(5)), and a script may hold a password.
func TestScriptIsNotInTheProcessList(t *testing.T) {
	for _, user := range []string{"", "nobody"} {
		if user != "" && os.Geteuid() != 0 {
			continue
		}
		var out bytes.Buffer
		script := "# hush-hush\nSECRET=hush-hush\nfor p in $$ $PPID; do tr '\\0' ' ' < /proc/$p/cmdline || true; done\necho; echo \"$0 ${#SECRET}\"\nread x || echo no input\nfalse\necho not reached\n"
		res, err := Run(t.Context(), Command{Script: script, User: user, Output: &out})
		if err != nil {
			t.Fatal(err)
		}
		if res.ExitCode != 1 || strings.Contains(out.String(), "not reached") {
			t.Errorf("the script did not end at its first failure: %+v\n%s", res, &out)
		}
		if strings.Contains(out.String(), "hush") || !strings.Contains(out.String(), "/bin/sh -e") {
			t.Errorf("arguments of a script's shell and its parent:\n%s", &out)
		}
		if !strings.Contains(out.String(), "/bin/sh 9\nno input\n") {
			t.Errorf("the script said\n%s", &out)
		}
	}
}

// TestLongScript: a script is as long as it is, not as arguments may be (128 KiB,
// MAX_ARG_STRLEN in linux/binfmts.h).
func TestLongScript(t *testing.T) {
	var out bytes.Buffer
	res, err := Run(t.Context(), Command{Script: strings.Repeat(": a line of a long script\n", 20_000) + "echo end", Output: &out})
	if err != nil || !res.OK() || out.String() != "end\n" {
		t.Errorf("%+v %v %q", res, err, out.String())
	}
}
