package hostagent

import (
	"testing"

	"github.com/swapback/swapback/api"
)

// TestSpareOfADegradedVolume: there may be no two disks left for its stripes.
func TestSpareOfADegradedVolume(t *testing.T) {
	v := api.Volume{Position: api.Position{Stripes: 2, StripeSize: 65536}}
	if n, size := stripesOf(v); n != 2 || size != 65536 {
		t.Errorf("%d stripes of %d", n, size)
	}
	v.Degraded = true
	if n, size := stripesOf(v); n != 0 || size != 0 {
		t.Errorf("without its disk: %d stripes of %d", n, size)
	}
}
