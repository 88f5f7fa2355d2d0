package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store"
)

const leaseDir = "leases"

// lease is the body of a session's object, for people who wonder who is there.
type lease struct {
	ID        string    `json:"id"`
	Operation string    `json:"operation"`
	Host      string    `json:"host"`
	PID       int       `json:"pid"`
	Started   time.Time `json:"started"`
}

// session is an operation that relies on packs staying where they are. While its
// lease is held, packs that were referenced when it began are not removed.
type session struct {
	id   format.ID
	name string
	hold store.Hold // nil on a repository that can't be written
	log  *slog.Logger
}

// begin starts a session. It must be called before the first manifest is read:
// see gc.go for why.
func (r *Repository) begin(ctx context.Context, operation string, log *slog.Logger) (*session, error) {
	s := &session{id: r.newID(), log: log}
	s.name = leaseDir + "/" + s.id.String()
	host, _ := os.Hostname()
	body, err := format.EncodeText(format.TextLease, lease{
		ID: s.id.String(), Operation: operation, Host: host, PID: os.Getpid(), Started: r.now().UTC(),
	})
	if err != nil {
		return nil, err
	}
	s.hold, err = r.store.Hold(ctx, s.name, body)
	return s, err
}

// beginReading is begin for an operation that only reads. It goes ahead on a
// read-only repository, where nobody removes anything either.
func (r *Repository) beginReading(ctx context.Context, operation string, log *slog.Logger) (*session, error) {
	s, err := r.begin(ctx, operation, log)
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		log.Warn("repository can't be written; going on without a lease", "repository", r.Location(), "err", err)
		return s, nil
	}
	return s, err
}

// alive tells whether the lease is still held and there: what was written under it
// may be gone when it is not.
func (s *session) alive(ctx context.Context, st store.Store) error {
	if _, err := st.Size(ctx, s.name); err != nil {
		return fmt.Errorf("somebody removed this operation's lease, and maybe its packs: %w", err)
	}
	if err := s.hold.Err(); err != nil {
		return fmt.Errorf("this operation's lease is lost, and maybe its packs: %w", err)
	}
	return nil
}

func (s *session) end() {
	if s.hold == nil {
		return
	}
	if err := s.hold.Release(); err != nil {
		// The lease counts as dead once the process has ended.
		s.log.Warn("lease could not be removed", "lease", s.name, "err", err)
	}
}
