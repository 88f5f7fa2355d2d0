package volume

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/swapback/swapback/nvmeof"
	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// TestSnapshotsForHosts: each is a read-only disk of an identity and an identifier of its own,
// which can be read while the volume can't be reached, and is gone when it is hidden.
func TestSnapshotsForHosts(t *testing.T) {
	r, host := remoteOnMemory(t, true)
	stateOfGroup(t, host) // one that heeds it
	q := host.IO[0]
	path := filepath.Join(t.TempDir(), "snapshot")
	ids, uuids := map[uint32]bool{remoteNamespace: true}, map[string]bool{}
	for n := byte(1); n <= 3; n++ {
		want := bytes.Repeat([]byte{n}, 4096)
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := r.show(path)
		if err != nil {
			t.Fatal(err)
		}
		if ids[s.id] || uuids[s.uuid.String()] || s.id > lastSnapshot {
			t.Errorf("snapshot %d has the identifier %d and the identity %s again", n, s.id, s.uuid)
		}
		ids[s.id], uuids[s.uuid.String()] = true, true
		if err := r.unreachable(true); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4096)
		if err := q.Read(s.id, 0, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("snapshot %d: %v, %x…", n, err, got[:4])
		}
		if err := r.unreachable(false); err != nil {
			t.Fatal(err)
		}
		if err := q.Write(s.id, 0, got); err == nil {
			t.Errorf("snapshot %d has taken a write", n)
		}
		if list := activeOf(t, host); len(list) != 2 || list[0] != remoteNamespace || list[1] != s.id {
			t.Errorf("with snapshot %d there are %d", n, list)
		}
		if err := s.hide(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := q.Read(s.id, 0, got); err == nil {
			t.Errorf("snapshot %d is read after its end", n)
		}
		if list := activeOf(t, host); len(list) != 1 || list[0] != remoteNamespace {
			t.Errorf("after snapshot %d there are %d", n, list)
		}
	}
	if _, err := r.show(path + "-not-there"); err == nil {
		t.Error("what is not there is shown")
	}
}

// activeOf are the namespaces that a host is told of.
func activeOf(t *testing.T, host *nvmetest.Controller) (list []uint32) {
	t.Helper()
	page, err := host.Identify(wire.CNSActiveList, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+4 <= len(page); i += 4 {
		if id := uint32(page[i]) | uint32(page[i+1])<<8 | uint32(page[i+2])<<16 | uint32(page[i+3])<<24; id != 0 {
			list = append(list, id)
		}
	}
	return list
}

// TestSnapshotIdentifiersComeBackLate: after all others, and never the volume's.
func TestSnapshotIdentifiersComeBackLate(t *testing.T) {
	var r remote
	seen := map[uint32]int{}
	const n = lastSnapshot - firstSnapshot + 1
	for i := range 3 * n {
		id := r.nextSnapshot()
		if id < firstSnapshot || id > lastSnapshot {
			t.Fatalf("identifier %d", id)
		}
		if last, again := seen[id]; again && i-last != n {
			t.Fatalf("identifier %d after %d others", id, i-last-1)
		}
		seen[id] = i
	}
	if len(seen) != n {
		t.Errorf("%d identifiers", len(seen))
	}
}

// TestReleasedHosts: they are not in the way, but for those whose name two machines have.
func TestReleasedHosts(t *testing.T) {
	at := func(host string, id byte) nvmeof.Connected {
		return nvmeof.Connected{Host: host, HostID: [16]byte{id}, Peer: "192.0.2.7:1"}
	}
	connected := []nvmeof.Connected{at("a", 1), at("a", 1), at("b", 2), at("c", 3), at("c", 4)}
	for _, tt := range []struct {
		released []string
		want     string
	}{
		{nil, "aabcc"}, {[]string{"a"}, "bcc"}, {[]string{"b", "a"}, "cc"}, {[]string{"c"}, "aabcc"}, {[]string{"a", "b", "c", "d"}, "cc"}, {[]string{"A", ""}, "aabcc"},
	} {
		got := ""
		for _, h := range holdersAmong("tank/db", connected, tt.released) {
			got += h.Host
			if h.Kind != "nvme" || h.Device != "tank/db" || h.Detail == "" {
				t.Errorf("%+v", h)
			}
		}
		if got != tt.want {
			t.Errorf("released %q: %s are in the way, want %s", tt.released, got, tt.want)
		}
	}
}
