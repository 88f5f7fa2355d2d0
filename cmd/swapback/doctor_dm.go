package main

import (
	"context"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/dmswap/dm"
)

// dmVersions asks device-mapper for its version and its targets' versions.
func dmVersions(context.Context) (dmInfo, error) {
	c, err := dm.Open()
	if err != nil {
		return dmInfo{}, err
	}
	defer c.Close()
	v, err := c.Version()
	if err != nil {
		return dmInfo{}, err
	}
	targets, err := c.Targets()
	if err != nil {
		return dmInfo{}, err
	}
	info := dmInfo{version: v.String(), targets: map[string]string{}}
	for _, t := range targets {
		info.targets[t.Name] = t.Version.String()
	}
	return info, nil
}

// noDM says whether an error means that the kernel has no device-mapper, or not
// yet.
func noDM(err error) bool {
	for _, e := range []error{dm.ErrUnsupported, fs.ErrNotExist, unix.ENODEV, unix.ENXIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
