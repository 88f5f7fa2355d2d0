package volume

import (
	"fmt"

	"github.com/swapback/swapback/dmswap/dm"
)

// dmSupport tells the version of the device-mapper interface and the targets
// that are loaded.
func dmSupport() (version string, targets []string, err error) {
	c, err := dm.Open()
	if err != nil {
		return "", nil, err
	}
	defer c.Close()
	v, err := c.Version()
	if err != nil {
		return "", nil, err
	}
	list, err := c.Targets()
	if err != nil {
		return "", nil, err
	}
	for _, t := range list {
		targets = append(targets, fmt.Sprintf("%s %s", t.Name, t.Version))
	}
	return v.String(), targets, nil
}
