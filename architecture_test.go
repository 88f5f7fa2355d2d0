// Package swapback_test holds the architecture as a test: imports point
// downwards only, as docs/architecture.md draws them.
package swapback_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/swapback/swapback"

// rooms lists, for every room, the rooms it may import. A room is the longest
// entry that is a prefix of a package's path; packages of one room may import
// each other. A package without a room fails the test: give it one here and in
// docs/architecture.md.
var rooms = map[string][]string{
	"cmd/swapback":       {"api", "backup", "hostagent", "hostagent/nvmehost", "holders", "ublk", "dmswap", "dmswap/dm", "version"},
	"cmd/swapback-agent": {"api", "backup", "hostagent", "hostagent/nvmehost", "holders", "version"},
	"cmd/swapbackd":      {"api", "volume", "holders", "ublk", "nvmeof", "version"},
	"hostagent":          {"api", "backup", "failpoint", "hostagent/nvmehost", "holders", "version"},
	"hostagent/nvmehost": {},
	"volume":             {"api", "dmswap", "dmswap/dm", "failpoint", "ublk", "nvmeof", "holders", "version"},
	"dmswap":             {"dmswap/dm", "failpoint"},
	"dmswap/dm":          {},
	"ublk":               {"failpoint", "ublk/uring"},
	"ublk/examples":      {"ublk"},
	"ublk/uring":         {},
	"nvmeof":             {"failpoint", "ublk/uring"},
	"nvmeof/examples":    {"nvmeof"},
	"backup":             {"failpoint"},
	"holders":            {},
	"api":                {},
	"failpoint":          {},
	"version":            {},
	"ci":                 {},
	"bench":              {"api", "dmswap/dm", "hostagent/nvmehost", "ublk", "version"},
	"bench/pause":        {"api", "dmswap/dm"},
	"demo":               {"api"},
	"soak":               {"api"},
	"soak/power":         {"api", "dmswap", "dmswap/dm", "soak"},
	"soak/disks":         {"api", "dmswap/dm", "soak"},
	"soak/network":       {"api", "ci", "soak"},
}

// testOnly are libraries that must not be linked into the product.
var testOnly = []string{"testing", module + "/nvmeof/nvmetest", "go.uber.org/goleak", "github.com/cilium/ebpf", "github.com/google/go-cmp"}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Name       string
}

func TestImportsPointDownwards(t *testing.T) {
	for _, p := range listPackages(t) {
		path, ok := strings.CutPrefix(p.ImportPath, module+"/")
		if !ok {
			continue // the root holds tests only
		}
		from := roomOf(path)
		if from == "" {
			t.Errorf("%s belongs to no room: add it to rooms and to docs/architecture.md", path)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module+"/")
			if !ours {
				continue
			}
			room := roomOf(to)
			if room != from && !slices.Contains(rooms[from], room) {
				t.Errorf("%s imports %s: room %s may not know room %s", path, to, from, room)
			}
		}
	}
}

func TestProductLinksNoTestLibraries(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.Name != "main" || !strings.HasPrefix(p.ImportPath, module+"/cmd/") {
			continue
		}
		for _, dep := range p.Deps {
			for _, lib := range testOnly {
				if dep == lib || strings.HasPrefix(dep, lib+"/") {
					t.Errorf("%s links %s, which is for tests", p.ImportPath, dep)
				}
			}
		}
	}
}

func TestRoomsAreAcyclic(t *testing.T) {
	var visit func(room string, path []string)
	visit = func(room string, path []string) {
		if slices.Contains(path, room) {
			t.Errorf("rooms import each other in a circle: %s", strings.Join(append(path, room), " → "))
			return
		}
		for _, to := range rooms[room] {
			visit(to, append(slices.Clone(path), room))
		}
	}
	for room := range rooms {
		visit(room, nil)
	}
}

func roomOf(path string) string {
	best := ""
	for room := range rooms {
		if (path == room || strings.HasPrefix(path, room+"/")) && len(room) > len(best) {
			best = room
		}
	}
	return best
}

func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps,Name", "./...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var list []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if len(list) == 0 {
		t.Fatal("go list found no packages")
	}
	return list
}
