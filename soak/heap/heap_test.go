package heap

import "testing"

func TestPeakSeesWhatIsGoneAgain(t *testing.T) {
	const size = 64 << 20
	got := Peak(func() {
		b := make([]byte, size)
		for i := range b {
			b[i] = 1
		}
	})
	if got < size {
		t.Errorf("the peak of %d bytes is %d", size, got)
	}
	if idle := Peak(func() {}); idle >= size {
		t.Errorf("the peak of nothing is %d", idle)
	}
}
