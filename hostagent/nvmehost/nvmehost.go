// Package nvmehost finds volumes of other machines among this machine's block
// devices: a volume that comes over NVMe has its own UUID as its namespace's, whatever
// name the kernel gives the device.
package nvmehost

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// namespace is the name of a device that can be opened. Those of single paths below
// a multipath device (nvme0c1n1) can't.
var namespace = regexp.MustCompile(`^nvme\d+n\d+$`)

// Device returns the path of the block device of the volume with a UUID, or "" when
// this machine has none. Of several the first by name.
func Device(uuid string) string { return find("/sys", uuid) }

// find looks below another root of sysfs.
func find(sys, uuid string) string {
	if uuid == "" {
		return ""
	}
	list, err := os.ReadDir(filepath.Join(sys, "class/block"))
	if err != nil {
		return ""
	}
	var found []string
	for _, e := range list {
		if !namespace.MatchString(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(sys, "class/block", e.Name(), "uuid"))
		if err == nil && strings.EqualFold(strings.TrimSpace(string(text)), uuid) {
			found = append(found, "/dev/"+e.Name())
		}
	}
	if len(found) == 0 {
		return ""
	}
	return slices.Min(found)
}
