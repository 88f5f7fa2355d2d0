package changes

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/swapback/swapback/dmswap"
)

// id is the 16 bytes of a UUID, which comes from the pool; "" is all zeroes.
func id(u dmswap.UUID) [16]byte {
	if u == "" {
		return [16]byte{}
	}
	parsed, err := uuid.Parse(u)
	if err != nil {
		panic(fmt.Sprintf("changes: unchecked UUID %q", u))
	}
	return parsed
}
