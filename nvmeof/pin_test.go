package nvmeof

import (
	"bytes"
	"os"
	"sync"
	"testing"

	"github.com/swapback/swapback/nvmeof/nvmetest"
	"github.com/swapback/swapback/nvmeof/wire"
)

// TestPinned has so many commands under way at once that some have their buffers
// registered with the ring and some have not, of sizes that fit what is registered and that
// don't.
func TestPinned(t *testing.T) {
	r, ns, path := fileRig(t, Options{})
	q := r.connect().IO[0]
	const commands, most = pinCommands + 16, 2 * pinSize
	model := make([]byte, testSize)
	all := func(do func(lba uint64, span []byte) error) {
		t.Helper()
		held := ns.Stats().Held
		ns.Hold()
		var wg sync.WaitGroup
		for i := range commands {
			size := []int{512, pinSize, most}[i%3]
			wg.Go(func() {
				if err := do(uint64(i*most/512), model[i*most:][:size]); err != nil {
					t.Errorf("command %d, of %d bytes: %v", i, size, err)
				}
			})
		}
		eventually(t, "all are held", func() bool { return ns.Stats().Held == held+commands })
		ns.Release()
		wg.Wait()
	}
	read := func(lba uint64, span []byte) error {
		got := make([]byte, len(span))
		cmd := nvmetest.IOCommand(wire.OpRead, 2, lba, len(span)/512)
		_, err := q.Do(&cmd, nil, got)
		if err == nil && !bytes.Equal(got, span) {
			t.Errorf("block %d: not what was written", lba)
		}
		return err
	}
	// The first command meets the file, and still goes without a ring.
	if err := read(0, model[:512]); err != nil {
		t.Fatal(err)
	}
	all(func(lba uint64, span []byte) error {
		copy(span, noise(lba, len(span)))
		cmd := nvmetest.IOCommand(wire.OpWrite, 2, lba, len(span)/512)
		_, err := q.Do(&cmd, span, nil)
		return err
	})
	all(read)
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, model) {
		t.Errorf("the file is not what was written (%v)", err)
	}
}
