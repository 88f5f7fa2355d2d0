package volume

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/swapback/swapback/nvmeof/auth"
	"github.com/swapback/swapback/nvmeof/wire"
)

// The secrets of hosts (DH-HMAC-CHAP) are in a file of the daemon's machine, not in the
// pool's metadata, which travels with the disks. It has a line for each host:
//
//	HOST-NQN SECRET [SECRET-OF-OURS]
//
// in the form that nvme gen-dhchap-key prints (DHHC-1:00:…:). The second one is what we
// prove to a host that asks. Empty lines and those that begin with # are passed over. The
// file is read whenever a host connects or authenticates anew, so that secrets can change at
// any time.
type secrets struct{ path string }

// maxSecrets bounds the file: more than ten thousand hosts.
const maxSecrets = 4 << 20

// hostSecrets are those of one host.
type hostSecrets struct{ host, own auth.Secret }

// check says why secrets could not be read now.
func (s secrets) check() error {
	if s.path == "" {
		return nil
	}
	_, err := s.read()
	return err
}

// of finds a host's secrets. An error is no leave to do without.
func (s secrets) of(host string) (hostSecrets, bool, error) {
	if s.path == "" {
		return hostSecrets{}, false, nil
	}
	all, err := s.read()
	found, ok := all[host]
	return found, ok, err
}

func (s secrets) read() (map[string]hostSecrets, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, fmt.Errorf("secrets of hosts: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("secrets of hosts: %w", err)
	}
	if err := private(info); err != nil {
		return nil, fmt.Errorf("secrets of hosts: %s: %w", s.path, err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSecrets+1))
	if err != nil {
		return nil, fmt.Errorf("secrets of hosts: %w", err)
	}
	if len(text) > maxSecrets {
		return nil, fmt.Errorf("secrets of hosts: %s has more than %d bytes", s.path, maxSecrets)
	}
	all, err := parseSecrets(text)
	if err != nil {
		return nil, fmt.Errorf("secrets of hosts: %s: %w", s.path, err)
	}
	return all, nil
}

// private refuses a file that others than its owner can read or change, or whose owner is
// neither root nor we.
func private(info os.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("it is no regular file")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("its mode is %04o, others may get at it (remedy: chmod 600)", info.Mode().Perm())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d (remedy: chown root)", st.Uid)
	}
	return nil
}

// parseSecrets reads the text of the file. Errors name the line and never what is in it.
func parseSecrets(text []byte) (map[string]hostSecrets, error) {
	all := map[string]hostSecrets{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) < 2 || len(fields) > 3 {
			return nil, fmt.Errorf("line %d: want HOST-NQN SECRET [SECRET-OF-OURS]", n)
		}
		host := fields[0]
		if err := wire.CheckNQN(host); err != nil {
			return nil, fmt.Errorf("line %d: it does not begin with the NQN of a host", n)
		}
		if _, twice := all[host]; twice {
			return nil, fmt.Errorf("line %d: %s has a line already", n, host)
		}
		var s hostSecrets
		var err error
		if s.host, err = auth.ParseSecret(fields[1]); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if len(fields) == 3 {
			if s.own, err = auth.ParseSecret(fields[2]); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		}
		all[host] = s
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("a line is too long")
	}
	return all, nil
}

// authenticate says what a host has to prove before it may use a volume. Whatever goes
// wrong here shuts the host out.
func (c *Controller) authenticate(r *remote, host string) (auth.Config, bool) {
	found, ok, err := c.nvme.secrets.of(host)
	switch {
	case err != nil:
		c.log.Error("host shut out", "volume", r.name, "host", host, "err", err)
	case ok:
		return auth.Config{Secret: found.host, Own: found.own}, true
	case !r.authenticate.Load():
		return auth.Config{}, false
	default:
		c.log.Warn("host shut out: the volume is for hosts that authenticate, and there is no secret of this one", "volume", r.name, "host", host)
	}
	nobody, err := auth.NewSecret(auth.SHA512)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return auth.Config{Secret: nobody}, true
}
