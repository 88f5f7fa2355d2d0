package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	mapperDir = "/dev/mapper"
	sysBlock  = "/sys/block"
)

// linkMapper makes the link by which lsblk and people know a device-mapper
// device (/dev/mapper/NAME → ../dm-N), where there is no udev to make it. The
// link is a convenience: nothing of swapback goes through it.
func (c *Controller) linkMapper(device string) {
	if device == "" {
		return
	}
	link, err := mapperLink(sysBlock, mapperDir, device)
	if err != nil {
		c.log.Warn("device-mapper link not made", "device", device, "err", err)
		return
	}
	to := filepath.Join("..", filepath.Base(device))
	if have, err := os.Readlink(link); err == nil && have == to {
		return
	}
	if err := replaceLink(to, link); err != nil {
		c.log.Warn("device-mapper link not made", "link", link, "err", err)
	}
}

// mapperLink returns the path of a device's link. The name comes from the
// kernel: it is the pool's business how it is put together.
func mapperLink(sys, dir, device string) (string, error) {
	name, err := os.ReadFile(filepath.Join(sys, filepath.Base(device), "dm", "name"))
	if err != nil {
		return "", err
	}
	clean := strings.TrimSpace(string(name))
	if clean == "" || strings.ContainsRune(clean, '/') {
		return "", fmt.Errorf("%s has the name %q", device, clean)
	}
	return filepath.Join(dir, clean), nil
}

// unlinkMapper removes links of swapback's devices that are gone.
func (c *Controller) unlinkMapper() {
	links, err := filepath.Glob(filepath.Join(mapperDir, "swapback-*"))
	if err != nil {
		return
	}
	for _, link := range links {
		if _, err := os.Readlink(link); err != nil {
			continue // a node, which is udev's or libdevmapper's
		}
		if _, err := os.Stat(link); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			c.log.Warn("device-mapper link not removed", "link", link, "err", err)
		}
	}
}
