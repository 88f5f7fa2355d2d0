package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Want is a module that the test machine should load.
type Want struct {
	Name string
	// Args are its parameters.
	Args string
	// Optional modules may be missing: not every kernel has them.
	Optional bool
}

// Early are the modules without which the host's root cannot be mounted.
func Early() []Want {
	return []Want{
		{Name: "virtio_pci"}, {Name: "virtio_console"}, {Name: "9pnet_virtio"}, {Name: "9p"}, {Name: "overlay"},
		{Name: "configfs", Optional: true},
	}
}

// Late are the modules that are there when a command starts. Everything else
// the guest can load with modprobe, and the kernel does so where it knows what
// it needs (filesystems, device-mapper targets); these save that time.
func Late() []Want {
	return []Want{
		{Name: "nvme"}, {Name: "ublk_drv"}, {Name: "dm_mod"}, {Name: "dm_snapshot"},
		{Name: "ext4"},
		{Name: "loop"},
		{Name: "crc32c_generic", Optional: true}, {Name: "crc32c_intel", Optional: true},
		{Name: "crc32c_cryptoapi", Optional: true},
	}
}

// Network are the late modules of a machine that has a network card.
func Network() []Want { return []Want{{Name: "virtio_net"}} }

// OnDemand are modules that are loaded by whoever needs them. They are listed
// so that they lie in the cache uncompressed. (xfs is not among the late ones
// because it takes an emulated machine two and a half seconds to load.)
func OnDemand() []Want {
	var list []Want
	for _, name := range []string{
		"xfs", "dm_flakey", "dm_delay", "dm_dust", "dm_log_writes", "dm_zero", "dm_clone",
		"null_blk", "brd", "nbd", "nvme_tcp", "nvmet", "nvmet_tcp", "nvme_loop",
	} {
		list = append(list, Want{Name: name, Optional: true})
	}
	return list
}

// File is one module file to insert, relative to the kernel's tree.
type File struct {
	Path, Args string
}

// Modules knows a kernel's modules and what they depend on.
type Modules struct {
	path    map[string]string
	needs   map[string][]string
	builtin map[string]bool
}

// ReadModules reads what depmod wrote into a kernel's module tree.
func ReadModules(tree string) (*Modules, error) {
	dep, err := os.ReadFile(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read the kernel's modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(tree, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read the kernel's modules: %w", err)
	}
	return ParseModules(string(dep), string(builtin)), nil
}

// ParseModules takes the text of modules.dep and modules.builtin.
func ParseModules(dep, builtin string) *Modules {
	m := &Modules{path: map[string]string{}, needs: map[string][]string{}, builtin: map[string]bool{}}
	for _, line := range strings.Split(dep, "\n") {
		file, needs, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		name := moduleName(file)
		m.path[name] = file
		m.needs[name] = strings.Fields(needs)
	}
	for _, file := range strings.Fields(builtin) {
		m.builtin[moduleName(file)] = true
	}
	return m
}

// Order returns the files to insert for a list of modules, each once, what is
// needed before what needs it. Modules that are part of the kernel are left out.
func (m *Modules) Order(wants []Want) ([]File, error) {
	var out []File
	done := map[string]bool{}
	add := func(name, args string) {
		if !done[name] {
			done[name] = true
			out = append(out, File{m.path[name], args})
		}
	}
	for _, w := range wants {
		name := moduleName(w.Name)
		if m.builtin[name] {
			continue
		}
		if _, ok := m.path[name]; !ok {
			if w.Optional {
				continue
			}
			return nil, fmt.Errorf("this kernel has no module %s", w.Name)
		}
		// modules.dep lists all that a module needs, the first to insert last.
		needs := m.needs[name]
		for i := len(needs) - 1; i >= 0; i-- {
			add(moduleName(needs[i]), "")
		}
		add(name, w.Args)
	}
	return out, nil
}

// moduleName turns a file's path into the module's name, in which dashes and
// underscores are the same.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}
