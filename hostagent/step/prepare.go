package step

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// mask is the usual one for files (umask(2)): a step depends on it as on PATH.
	mask = 0o022
	// scriptFD is where the shell finds a script, the first descriptor behind
	// the standard ones.
	scriptFD = 3
)

// scriptArgs make the shell read a script from scriptFD. By the dot and not as
// its file, so that $0 and the shell's messages are those of "sh -c".
var scriptArgs = []string{"/bin/sh", "-e", "-c", fmt.Sprintf(". /proc/self/fd/%d", scriptFD)}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// prepare makes the command with its user, environment and session.
func (c Command) prepare() (*exec.Cmd, error) {
	attr := &syscall.SysProcAttr{Setsid: true}
	u, err := c.account()
	if err != nil {
		return nil, err
	}
	if attr.Credential, err = credential(u); err != nil {
		return nil, err
	}
	env := c.environment(u)
	program, err := lookPath(c.Args[0], env["PATH"])
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{Path: program, Args: c.Args, Dir: c.Dir, SysProcAttr: attr, Env: []string{}}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	if info, err := os.Stat(cmd.Dir); err != nil {
		return nil, fmt.Errorf("working directory: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("working directory %s is no directory", cmd.Dir)
	}
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	slices.Sort(cmd.Env)
	return cmd, nil
}

// launch starts a prepared command with a mask of its own and without what we
// hold open. Both are of the whole process; what we make ourselves has its mode
// from whoever makes it, and Go's own descriptors are closed on exec anyway.
func (c Command) launch(cmd *exec.Cmd) error {
	if c.Script != "" {
		script, err := memoryFile(c.Script)
		if err != nil {
			return fmt.Errorf("handing over the script: %w", err)
		}
		defer script.Close()
		cmd.ExtraFiles = []*os.File{script}
	}
	if err := unix.CloseRange(scriptFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keeping descriptors from the command: %w", err)
	}
	defer unix.Umask(unix.Umask(mask))
	return cmd.Start()
}

// memoryFile returns a file that holds a script and can't be changed any more.
// The script closes its descriptor first: the shell has opened the file anew.
func memoryFile(script string) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("step", flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("step", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "step")
	_, err = fmt.Fprintf(f, "exec %d<&-; %s", scriptFD, script)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// LookupUser finds an account by name or number.
func LookupUser(name string) (*user.User, error) {
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		if byID, iderr := user.LookupId(name); iderr == nil {
			return byID, nil
		}
		return nil, fmt.Errorf("there is no user %q on this machine", name)
	}
	if err != nil {
		return nil, fmt.Errorf("user %q: %w", name, err)
	}
	return u, nil
}

func (c Command) account() (*user.User, error) {
	if c.User != "" {
		return LookupUser(c.User)
	}
	id := strconv.Itoa(os.Geteuid())
	u, err := user.LookupId(id)
	if err != nil {
		// In a container our own number may have no name.
		return &user.User{Uid: id, Gid: strconv.Itoa(os.Getegid()), Username: id, HomeDir: "/"}, nil
	}
	return u, nil
}

// credential returns what to switch to, or nil when we are that user already.
func credential(u *user.User) (*syscall.Credential, error) {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: number %q", u.Username, u.Uid)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: group %q", u.Username, u.Gid)
	}
	if int(uid) == os.Geteuid() {
		return nil, nil
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("only root can run a step as user %s", u.Username)
	}
	cred := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("groups of user %s: %w", u.Username, err)
	}
	for _, g := range groups {
		n, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("groups of user %s: %q", u.Username, g)
		}
		cred.Groups = append(cred.Groups, uint32(n))
	}
	return cred, nil
}

func (c Command) environment(u *user.User) map[string]string {
	env := map[string]string{
		"PATH": defaultPath, "HOME": u.HomeDir, "USER": u.Username, "LOGNAME": u.Username,
		"SHELL": "/bin/sh", "LANG": "C.UTF-8",
	}
	for name, value := range c.Env {
		env[name] = value
	}
	return env
}

// lookPath finds a program on the step's PATH, not on ours.
func lookPath(program, path string) (string, error) {
	if strings.Contains(program, "/") {
		return program, nil
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		full := filepath.Join(dir, program)
		if info, err := os.Stat(full); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", fmt.Errorf("no program %q in %s", program, path)
}
