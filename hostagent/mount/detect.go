package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// UnknownError: a device carries nothing that could be mounted.
type UnknownError struct {
	Device string
	Found  string // what it carries instead, "" when nothing is known of it
}

func (e *UnknownError) Error() string {
	if e.Found == "" {
		return fmt.Sprintf("no filesystem is found on %s (make one, or name it with fstype)", e.Device)
	}
	return fmt.Sprintf("%s carries %s, which can't be mounted", e.Device, e.Found)
}

// probeBytes is as far as the magics below lie.
const probeBytes = 68 << 10

// magics are what filesystems are recognised by. Their kernels' headers name
// the places: ext4.h, xfs_format.h, btrfs_tree.h, f2fs_fs.h.
var magics = []struct {
	fstype string
	offset int
	magic  []byte
}{
	{"ext4", 1024 + 0x38, []byte{0x53, 0xef}}, // drives ext2 and ext3 too
	{"xfs", 0, []byte("XFSB")},
	{"btrfs", 64<<10 + 0x40, []byte("_BHRfS_M")},
	{"f2fs", 1024, []byte{0x10, 0x20, 0xf5, 0xf2}},
}

// others are what is no filesystem but worth a name in the message.
var others = []struct {
	what   string
	offset int
	magic  []byte
}{
	{"an encrypted volume (LUKS)", 0, []byte("LUKS\xba\xbe")},
	{"an LVM physical volume", 512, []byte("LABELONE")},
	{"swap space", 4096 - 10, []byte("SWAPSPACE2")},
	{"a partition table (GPT)", 512, []byte("EFI PART")},
}

// Detect finds out which filesystem a device carries. When it knows none the
// error is an [*UnknownError].
func Detect(device string) (string, error) {
	f, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return DetectIn(device, f)
}

// DetectIn is [Detect] for content that is read from its beginning; name is what
// messages call it.
func DetectIn(name string, r io.Reader) (string, error) {
	head := make([]byte, probeBytes)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("look for a filesystem on %s: %w", name, err)
	}
	return detect(name, head[:n])
}

func detect(device string, head []byte) (string, error) {
	has := func(offset int, magic []byte) bool {
		return len(head) >= offset+len(magic) && bytes.Equal(head[offset:offset+len(magic)], magic)
	}
	// What lies on top of a filesystem's remains counts, not the remains.
	for _, o := range others {
		if has(o.offset, o.magic) {
			return "", &UnknownError{device, o.what}
		}
	}
	for _, m := range magics {
		if has(m.offset, m.magic) {
			return m.fstype, nil
		}
	}
	return "", &UnknownError{Device: device}
}
