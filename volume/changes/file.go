package changes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The fine map of a position in a file. It is shared memory with checksummed
// head: the words behind it are changed in place, by whoever serves the volume,
// and are as whole as memory is. What makes it worth trusting is that the head
// names the session that the disks name, too; a file that does not is not used.
// All numbers are little-endian; bytes not listed are zero.
//
//	offset  size  field
//	0       8     magic "SWAPFINE"
//	8       4     version, 1
//	12      4     CRC32C of the 4096 bytes of the head with this field zero
//	16      16    UUID of the pool
//	32      16    UUID of the position
//	48      16    session that the pool's maps are kept under
//	64      8     size of the position in bytes
//	72      8     block size in bytes
//	80      8     generation of the base that was recorded when the file was made
//	4096    8 n   active: bit i of word j is block 64 j + i, written since the cut
//	+ 8 n   8 n   frozen: written before the cut and not confirmed yet
const (
	fileMagic   = "SWAPFINE"
	fileVersion = 1
	headSize    = 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// head says whose map it is.
type head struct {
	Pool, Position, Session [16]byte
	Size, Block             uint64
	Generation              uint64
}

func (h head) encode() []byte {
	b := make([]byte, headSize)
	le := binary.LittleEndian
	copy(b, fileMagic)
	le.PutUint32(b[8:], fileVersion)
	copy(b[16:], h.Pool[:])
	copy(b[32:], h.Position[:])
	copy(b[48:], h.Session[:])
	le.PutUint64(b[64:], h.Size)
	le.PutUint64(b[72:], h.Block)
	le.PutUint64(b[80:], h.Generation)
	le.PutUint32(b[12:], crc32.Checksum(b, castagnoli))
	return b
}

func decodeHead(b []byte) (h head, err error) {
	if len(b) < headSize || string(b[:8]) != fileMagic {
		return h, errors.New("it is no change map")
	}
	b = append([]byte(nil), b[:headSize]...)
	le := binary.LittleEndian
	want := le.Uint32(b[12:])
	le.PutUint32(b[12:], 0)
	if got := crc32.Checksum(b, castagnoli); got != want {
		return h, fmt.Errorf("its checksum is %08x, not %08x", got, want)
	}
	if v := le.Uint32(b[8:]); v != fileVersion {
		return h, fmt.Errorf("it has version %d, this program knows %d", v, fileVersion)
	}
	return head{
		Pool: [16]byte(b[16:]), Position: [16]byte(b[32:]), Session: [16]byte(b[48:]),
		Size: le.Uint64(b[64:]), Block: le.Uint64(b[72:]), Generation: le.Uint64(b[80:]),
	}, nil
}

// fits tells why a file is not the map that is looked for, or nil. One that was
// made under an earlier base has all that is wanted, and more.
func (h head) fits(want head) error {
	generation := h.Generation
	h.Generation = want.Generation
	switch {
	case h != want:
		return errors.New("it is of another position, session or size")
	case generation > want.Generation:
		return fmt.Errorf("it was made under generation %d, the metadata has %d", generation, want.Generation)
	}
	return nil
}

// words of memory: the active and the frozen half.
type words struct {
	active, frozen []atomic.Uint64
	mem            []byte // mapped; nil: of the heap
}

func onHeap(n int) words {
	return words{active: make([]atomic.Uint64, n), frozen: make([]atomic.Uint64, n)}
}

func mapped(mem []byte, n int) words {
	all := unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&mem[headSize])), 2*n)
	return words{active: all[:n:n], frozen: all[n:], mem: mem}
}

func (w words) close() {
	if w.mem != nil {
		_ = unix.Munmap(w.mem)
	}
}

// openFile maps the file of a position if it is the one that is wanted.
func openFile(path string, want head, n int) (words, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return words{}, err
	}
	defer f.Close()
	b := make([]byte, headSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return words{}, fmt.Errorf("its head can't be read: %w", err)
	}
	h, err := decodeHead(b)
	if err == nil {
		err = h.fits(want)
	}
	if err != nil {
		return words{}, err
	}
	st, err := f.Stat()
	if err != nil {
		return words{}, err
	}
	if st.Size() != fileSize(n) {
		return words{}, fmt.Errorf("it has %d bytes, not %d", st.Size(), fileSize(n))
	}
	return mapFile(f, n)
}

func fileSize(n int) int64 { return headSize + 16*int64(n) }

// createFile makes a file beside path, which rename puts there.
func createFile(path string, h head, n int) (w words, rename func() error, err error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return words{}, nil, err
	}
	defer f.Close()
	if _, err = f.WriteAt(h.encode(), 0); err == nil {
		// Reserved now: a page that the file system had no room for would end the
		// process when it is touched.
		err = unix.Fallocate(int(f.Fd()), 0, 0, fileSize(n))
	}
	if err == nil {
		w, err = mapFile(f, n)
	}
	if err != nil {
		os.Remove(tmp)
		return words{}, nil, err
	}
	return w, func() error { return os.Rename(tmp, path) }, nil
}

func mapFile(f *os.File, n int) (words, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, int(fileSize(n)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return words{}, fmt.Errorf("mmap: %w", err)
	}
	// It must not wait for a swap device, which may be a volume of ours. Where
	// that is not permitted it is as all of the process's memory is.
	_ = unix.Mlock(mem)
	return mapped(mem, n), nil
}
