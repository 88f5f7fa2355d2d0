package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// headerTime bounds how long a client takes to say what it wants, idleTime
	// how long a connection waits for the next request.
	headerTime = 10 * time.Second
	idleTime   = 2 * time.Minute
	maxHeader  = 16 << 10 // bytes
)

// serve answers requests on the socket until ctx ends, and then lets those
// that are under way come to their end.
func serve(ctx context.Context, ln net.Listener, h http.Handler, log *slog.Logger) error {
	srv := newServer(ctx, h, log)
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil && !errors.Is(err, http.ErrServerClosed) {
		log.Warn("requests were cut off at the end", "err", err)
		return srv.Close()
	}
	return nil
}

// newServer bounds what a client may cost before a request of it is known. How
// long a body may take is bounded by the API's handler.
func newServer(ctx context.Context, h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           logCallers(h, log),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		// Snapshots are held by open requests. They see the end of the daemon
		// through this context and let go.
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: withCaller,
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

type callerKey struct{}

// withCaller asks the kernel who is at the other end (SO_PEERCRED, unix(7)): the
// process that connected, as it was then.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	if l, ok := c.(*limitedConn); ok {
		c = l.Conn
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return ctx
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	err = raw.Control(func(fd uintptr) { cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, callerKey{}, cred)
}

// logCallers writes who asked for every change, beside what the change itself
// writes. Bodies are not written: what they hold is the caller's.
func logCallers(h http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			uid, pid := int64(-1), int32(-1) // not to be had
			if cred, ok := r.Context().Value(callerKey{}).(*unix.Ucred); ok {
				uid, pid = int64(cred.Uid), cred.Pid
			}
			log.Info("change asked for", "method", r.Method, "path", r.URL.EscapedPath(), "uid", uid, "pid", pid)
		}
		h.ServeHTTP(w, r)
	})
}
