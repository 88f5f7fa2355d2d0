package remote

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/api/access"
	"github.com/swapback/swapback/api/certs"
)

type peerKey struct{}

// sameOrigin keeps other sites' pages from using a certificate that somebody has
// put into a browser.
var sameOrigin = http.NewCrossOriginProtection()

// serve answers one request of a client that is known.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	p, _ := r.Context().Value(peerKey{}).(*peer)
	st := s.state.Load()
	if p == nil || st == nil {
		answer(w, &api.Error{Code: api.CodeDenied, Message: "it is not known who asks"})
		return
	}
	defer p.done()
	if p.over {
		w.Header().Set("Connection", "close")
		answer(w, &api.Error{
			Status: http.StatusTooManyRequests, Code: api.CodeBusy,
			Message: fmt.Sprintf("client %s has %d connections open, and may have no more", p.name, s.limits.perClient), Remedy: "try again when one of them is done",
		})
		return
	}
	out := &writer{ResponseWriter: w, control: http.NewResponseController(w), patience: s.limits.write}
	if r.Body != http.NoBody {
		// Also when nobody reads it: the server then reads it away. Without a body
		// the deadline would end the request.
		_ = out.control.SetReadDeadline(time.Now().Add(s.limits.body))
	}
	if err := sameOrigin.Check(r); err != nil {
		answer(w, &api.Error{Code: api.CodeDenied, Message: "a page of another site asked: " + err.Error()})
		return
	}
	log := s.log.With("client", p.name, "certificate", certs.Serial(p.cert), "from", r.RemoteAddr)
	s.warn(p.name, p.cert)
	change := r.Method != http.MethodGet && r.Method != http.MethodHead
	if change {
		log.Info("change asked for", "method", r.Method, "path", r.URL.EscapedPath())
		defer func() {
			log.Info("change answered", "method", r.Method, "path", r.URL.EscapedPath(), "status", out.status)
		}()
	}
	c := &call{
		name: p.name, table: st.table, file: s.o.Access, peer: p, log: log, denies: s.refused.allow,
		now: func() *access.Table { return s.state.Load().table },
	}
	s.api.ServeHTTP(out, r.WithContext(withCall(r.Context(), c)))
}

func answer(w http.ResponseWriter, e *api.Error) {
	e.Status = e.GetStatus()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(e) // or the client is gone
}

// writer gives a client a while to take each part of an answer. How long the
// making of the answer takes is not its business: a swap may take minutes.
type writer struct {
	http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration
	status   int
}

// Unwrap lets deadlines be set through it.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if err := w.control.SetWriteDeadline(time.Now().Add(w.patience)); err != nil {
		return 0, err
	}
	return w.ResponseWriter.Write(b)
}

// Flush implements http.Flusher: a snapshot's answer is sent before it ends, which
// may be hours later.
func (w *writer) Flush() {
	_ = w.control.Flush() // who writes next hears of it
	_ = w.control.SetWriteDeadline(time.Time{})
}

// stampAll tells one state of the files from another.
func (s *Server) stampAll() []string {
	var all []string
	for _, path := range []string{s.o.Cert, s.o.Key, s.o.CA, s.o.Access} {
		all = append(all, stamp(path))
	}
	return all
}

func stamp(path string) string {
	if path == "" {
		return ""
	}
	fi, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	var inode, changed any
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		inode, changed = st.Ino, st.Ctim
	}
	return fmt.Sprint(fi.Mode(), fi.Size(), fi.ModTime(), inode, changed)
}
