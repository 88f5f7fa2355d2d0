package memservice

import (
	"bytes"
	"fmt"
	"os"

	"github.com/swapback/swapback/api"
)

// changeBlock is the unit of the service's change maps in bytes.
const changeBlock = 4096

// image is the content of a position at an instant, in memory: what a change map
// is made of by comparing.
type image struct {
	backup   string // "" until it is confirmed
	position string
	content  []byte
}

// cut takes the content of a volume for one that a backup may become, and says
// what has changed since the last that one did. The lock is held.
func (s *Service) cut(v *api.Volume) (api.Changes, error) {
	now, err := os.ReadFile(s.file(v.Position.ID))
	if err != nil {
		return api.Changes{}, err
	}
	var words []uint64
	base := s.bases[v.Position.ID]
	if base != nil {
		words = make([]uint64, (len(now)+64*changeBlock-1)/(64*changeBlock))
		for b := 0; b*changeBlock < len(now); b++ {
			from, to := b*changeBlock, min((b+1)*changeBlock, len(now))
			if to > len(base.content) || !bytes.Equal(now[from:to], base.content[from:to]) {
				words[b/64] |= 1 << (b % 64)
			}
		}
	}
	c, err := api.NewChanges(int64(len(now)), changeBlock, words)
	if err != nil {
		return c, err
	}
	if base != nil {
		c.Base = base.backup
	} else {
		c.Why = "nothing was confirmed for position " + v.Position.ID
	}
	c.Cut = fmt.Sprintf("cut-%d", len(s.cuts))
	s.cuts = append(s.cuts, image{position: v.Position.ID, content: now})
	return c, nil
}

// confirm makes a backup of a cut the base of its position. The lock is held.
func (s *Service) confirm(v *api.Volume, cut, backup string) {
	for i := range s.cuts {
		if c := &s.cuts[i]; cut == fmt.Sprintf("cut-%d", i) && c.position == v.Position.ID {
			c.backup = backup
			s.bases[c.position] = c
		}
	}
}
