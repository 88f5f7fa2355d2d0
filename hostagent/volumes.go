package hostagent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/swapback/swapback/api"
)

// lookup finds volumes and refuses one that is named twice.
func lookup(ctx context.Context, svc api.Service, names []string) ([]api.Volume, error) {
	if len(names) == 0 {
		return nil, &api.Error{Code: api.CodeInvalid, Message: "no volume is named"}
	}
	seen := map[string]string{}
	volumes := make([]api.Volume, len(names))
	for i, name := range names {
		v, err := svc.Volume(ctx, name)
		if err != nil {
			return nil, err
		}
		if other, twice := seen[v.UUID]; twice {
			return nil, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("volume %s is named twice, as %s and %s", full(v), other, name)}
		}
		seen[v.UUID] = name
		volumes[i] = v
	}
	return volumes, nil
}

// full returns POOL/NAME, as messages name a volume.
func full(v api.Volume) string { return v.Pool + "/" + v.Name }

func list(volumes []api.Volume) string {
	names := make([]string, len(volumes))
	for i, v := range volumes {
		names[i] = full(v)
	}
	return strings.Join(names, ", ")
}

func ids(volumes []api.Volume) []string {
	list := make([]string, len(volumes))
	for i, v := range volumes {
		list[i] = v.UUID
	}
	return list
}

// pollEvery is the time between two looks at something that has no event.
const pollEvery = 20 * time.Millisecond

// poll calls done until it is, fails, or ctx is over.
func poll(ctx context.Context, done func() (bool, error)) error {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}

// busyTime bounds the wait for another operation on a volume to end.
const busyTime = 30 * time.Second

// retryBusy calls f until it answers something else than busy, for a while. The
// last answer is the one that counts.
func retryBusy(ctx context.Context, f func() error) error {
	for deadline := time.Now().Add(busyTime); ; {
		err := f()
		if api.CodeOf(err) != api.CodeBusy || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pollEvery):
		}
	}
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
