package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// maxConnections is how many clients are answered at once; others wait. A
// snapshot holds its connection for as long as a backup reads it.
const maxConnections = 512

// listen makes the socket, for root and the group only. A socket that a dead
// daemon left is replaced; one that answers is not (the lock in the run
// directory has made sure already that its pools are not ours).
func listen(path, group string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory of the socket: %w", err)
	}
	if err := checkDir(dir); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another daemon answers there; stop it or give another --socket", path)
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("socket %s: a %s of that name is in the way", path, fi.Mode().Type())
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("stale socket: %w", err)
		}
	}
	ln, err := bind(path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if err := admit(path, group); err != nil {
		ln.Close()
		return nil, err
	}
	return limit(ln, maxConnections), nil
}

// checkDir refuses a directory in which somebody else could put a socket of his
// own in the place of ours, and so be given the commands that are meant for us.
func checkDir(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("directory %s: %w", dir, err)
	}
	if st.Uid != 0 && st.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("directory %s belongs to user %d, who could replace the socket; use one of root's", dir, st.Uid)
	}
	if st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
		return fmt.Errorf("directory %s is writable by others, who could replace the socket (chmod go-w %s)", dir, dir)
	}
	return nil
}

// bind makes a socket that only its owner can open, from its first moment on: a
// mode that is set afterwards comes too late for whoever waits for the socket.
// The mask is the process's; nothing else makes files while the daemon starts.
func bind(path string) (net.Listener, error) {
	defer unix.Umask(unix.Umask(0o177))
	return net.Listen("unix", path)
}

// admit lets the group in, when it exists.
func admit(path, group string) error {
	g, err := user.LookupGroup(group)
	if err != nil {
		return nil // the socket stays root's
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("group %s: id %q: %w", group, g.Gid, err)
	}
	// The group before the mode: no other group is let in between.
	if err := errors.Join(os.Lchown(path, os.Geteuid(), gid), os.Chmod(path, 0o660)); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	return nil
}

// limit returns a listener that has at most n connections open.
func limit(ln net.Listener, n int) net.Listener {
	return &limitedListener{Listener: ln, free: make(chan struct{}, n), closed: make(chan struct{})}
}

type limitedListener struct {
	net.Listener
	free   chan struct{} // holds one item for each connection
	closed chan struct{}
	once   sync.Once
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, done: sync.OnceFunc(func() { <-l.free })}, nil
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	done func()
}

func (c *limitedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}
