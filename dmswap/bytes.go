package dmswap

import (
	"fmt"
	"hash/crc32"
	"regexp"
	"unsafe"

	"github.com/google/uuid"
)

// blockSize is the unit of everything swapback itself reads and writes on a
// member: the largest logical block of a disk, so that O_DIRECT works on all.
const blockSize = 4096

// castagnoli is the polynomial of every checksum on a member (CRC32C).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crc(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// NewUUID makes a random UUID.
func NewUUID() UUID { return uuid.NewString() }

// uuidBytes returns the 16 bytes of a UUID that was checked before.
func uuidBytes(u UUID) [16]byte {
	id, err := uuid.Parse(u)
	if err != nil {
		panic(fmt.Sprintf("dmswap: unchecked UUID %q", u))
	}
	return id
}

func uuidText(b []byte) UUID { return uuid.UUID(b[:16]).String() }

// validUUID accepts the canonical form only: two spellings of one UUID would
// be two names of one thing.
func validUUID(u UUID) bool {
	id, err := uuid.Parse(u)
	return err == nil && id.String() == u
}

// names of pools and volumes: they become parts of device names and paths.
var validName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`).MatchString

func checkName(what, name string) error {
	if validName(name) {
		return nil
	}
	return errf(ErrInvalid, "use 1 to 64 letters, digits, '.', '_' and '-', with a letter, digit or '_' first", "%s name %q", what, name)
}

func roundUp(n, unit int64) int64   { return (n + unit - 1) / unit * unit }
func roundDown(n, unit int64) int64 { return n / unit * unit }
func isPowerOfTwo(n int64) bool     { return n > 0 && n&(n-1) == 0 }

// alignedBuffer returns n zero bytes at an address that O_DIRECT accepts.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+blockSize)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (blockSize - 1))
	return b[skip : skip+n : skip+n]
}

// sizeText writes a size for a person.
func sizeText(n int64) string {
	units := []struct {
		name  string
		bytes int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}
	for _, u := range units {
		if n >= u.bytes {
			if n%u.bytes == 0 {
				return fmt.Sprintf("%d %s", n/u.bytes, u.name)
			}
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.bytes), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
