package ublk

import "fmt"

// DataPath is how the data of requests gets from the kernel's block layer to
// the backend, and how requests and results travel.
type DataPath uint8

// The ways, slowest first.
const (
	// DataPathAuto is the fastest that kernel and backend have.
	DataPathAuto DataPath = iota
	// DataPathCopy has the driver copy each request's data from or to a buffer
	// of this process. Every kernel has it, and only it lets a Handler see data.
	DataPathCopy
	// DataPathZeroCopy registers each request's own pages with the queue's ring
	// (UBLK_F_AUTO_BUF_REG, kernel 6.16): the backend reads and writes them
	// directly.
	DataPathZeroCopy
	// DataPathBatch is zero copy, with requests fetched by one multishot
	// command and answered many at a time (UBLK_F_BATCH_IO, kernel 7.0).
	DataPathBatch
)

var dataPathNames = [...]string{"auto", "copy", "zero-copy", "batch"}

func (p DataPath) String() string {
	if int(p) < len(dataPathNames) {
		return dataPathNames[p]
	}
	return fmt.Sprintf("data-path-%d", uint8(p))
}

// ParseDataPath is the inverse of String.
func ParseDataPath(name string) (DataPath, error) {
	for i, n := range dataPathNames {
		if n == name {
			return DataPath(i), nil
		}
	}
	return 0, fmt.Errorf("ublk: data path %q: choose auto, copy, zero-copy or batch", name)
}

// What the paths are made of.
const (
	// The plain SupportZeroCopy lets the server register a request's pages by
	// itself where the driver could not (ioFlagNeedRegBuf).
	zeroCopyFlags = AutoBufReg | SupportZeroCopy
	batchFlags    = zeroCopyFlags | BatchIO
)

// choose settles on a path that driver and backend have, and says which device
// flags it takes. A path that was asked for by name and cannot be had is
// ErrUnsupported.
func (p DataPath) choose(have Features, b *Backend) (DataPath, Features, error) {
	fits := b.zeroCopy()
	switch p {
	case DataPathAuto:
		if !fits {
			return DataPathCopy, 0, nil
		}
		switch best := have.DataPath(); best {
		case DataPathBatch:
			return best, batchFlags, nil
		case DataPathZeroCopy:
			return best, zeroCopyFlags, nil
		}
		return DataPathCopy, 0, nil
	case DataPathCopy:
		return DataPathCopy, 0, nil
	case DataPathZeroCopy, DataPathBatch:
		if !fits {
			return 0, 0, fmt.Errorf("ublk: data path %v: backend %s handles data in this process: %w (remedy: use copy or auto)", p, b.path, ErrUnsupported)
		}
		want, since := zeroCopyFlags, "6.16"
		if p == DataPathBatch {
			want, since = batchFlags, "7.0"
		}
		if !have.Has(want) {
			return 0, 0, fmt.Errorf("ublk: data path %v: %w: needs kernel %s or later (remedy: use auto)", p, ErrUnsupported, since)
		}
		return p, want, nil
	}
	return 0, 0, fmt.Errorf("ublk: data path %v is not one", p)
}

// DataPath is the fastest path that these features make up: of a driver, what
// DataPathAuto comes to for a file or block device; of a device (Info.Flags), the
// one that its requests take.
func (f Features) DataPath() DataPath {
	switch {
	case f.Has(batchFlags):
		return DataPathBatch
	case f.Has(zeroCopyFlags):
		return DataPathZeroCopy
	}
	return DataPathCopy
}
