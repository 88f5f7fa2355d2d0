package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand"
	"slices"
	"strings"
	"testing"
)

// image is a sparse disk.
type image struct {
	size  int64
	parts map[int64][]byte
	fail  error
}

func (m *image) ReadAt(p []byte, off int64) (int, error) {
	if m.fail != nil {
		return 0, m.fail
	}
	if off%512 != 0 || len(p)%512 != 0 {
		return 0, errors.New("misaligned read")
	}
	n := int(min(int64(len(p)), m.size-off))
	clear(p[:n])
	for at, b := range m.parts {
		for i, c := range b {
			if pos := at + int64(i) - off; pos >= 0 && pos < int64(n) {
				p[pos] = c
			}
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func disk(size int64, parts map[int64][]byte) *image { return &image{size: size, parts: parts} }

func names(found []Found) []string {
	var list []string
	for _, f := range found {
		list = append(list, f.Name)
	}
	return list
}

func TestProbe(t *testing.T) {
	const size = 256<<20 + 4096*3
	ext := func(compat, incompat uint32) []byte {
		b := make([]byte, 0x30)
		b[0], b[1] = 0x53, 0xef
		binary.LittleEndian.PutUint32(b[0x5c-0x38:], compat)
		binary.LittleEndian.PutUint32(b[0x60-0x38:], incompat)
		return b
	}
	swapback := make([]byte, 188)
	copy(swapback, "SWAPBACK")
	copy(swapback[120:], "tank")
	binary.LittleEndian.PutUint64(swapback[64:], 4<<20)
	unfinished := bytes.Clone(swapback)
	unfinished[184] = 1
	dos := make([]byte, 512)
	dos[446], dos[450], dos[510], dos[511] = 0x80, 0x83, 0x55, 0xaa
	odd := bytes.Clone(dos)
	odd[446] = 0x17
	nilfs := make([]byte, 16)
	nilfs[0], nilfs[6], nilfs[7], nilfs[9] = 2, 0x34, 0x34, 1
	for _, tt := range []struct {
		want string
		at   int64
		b    []byte
	}{
		{`a member of the swapback pool "tank"`, 4096, swapback},
		{`a member of the swapback pool "tank", which was being made or deleted`, 4096, unfinished},
		{"a GPT partition table", 512, []byte("EFI PART")},
		{"a GPT partition table", size - 512, []byte("EFI PART")},
		{"a GPT partition table", size - 4096, []byte("EFI PART")},
		{"a DOS partition table", 0, dos},
		{"a boot sector or partition table", 0, odd},
		{"an LVM physical volume", 512, []byte("LABELONE")},
		{"a member of a Linux RAID (md)", 4096, []byte{0xfc, 0x4e, 0x2b, 0xa9}},
		{"a member of a Linux RAID (md)", ((size/512 - 16) &^ 7) * 512, []byte{0xfc, 0x4e, 0x2b, 0xa9}},
		{"a member of a Linux RAID (md)", size&^0xffff - 0x10000, []byte{0xfc, 0x4e, 0x2b, 0xa9}},
		{"LUKS encryption", 0, []byte("LUKS\xba\xbe")},
		{"LUKS encryption (second header)", 0x8000, []byte("SKUL\xba\xbe")},
		{"a member of a ZFS pool", 128<<10 + 5<<10, []byte{0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0}},
		{"a member of a ZFS pool", size/(256<<10)*(256<<10) - 128<<10 + 8<<10, []byte{0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c}},
		{"swap space", 4086, []byte("SWAPSPACE2")},
		{"swap space", 65526, []byte("SWAPSPACE2")},
		{"an ext2 filesystem", 1080, ext(0, 2)},
		{"an ext3 filesystem", 1080, ext(4, 2)},
		{"an ext4 filesystem", 1080, ext(4, 0x2c2)},
		{"an XFS filesystem", 0, []byte("XFSB")},
		{"a btrfs filesystem", 65600, []byte("_BHRfS_M")},
		{"a btrfs filesystem", 64<<20 + 64, []byte("_BHRfS_M")},
		{"an NTFS filesystem", 3, []byte("NTFS    ")},
		{"a NILFS2 filesystem", 1024, nilfs},
		{"an F2FS filesystem", 1024, []byte{0x10, 0x20, 0xf5, 0xf2}},
		{"a VMFS filesystem", 1 << 20, []byte{0x0d, 0xd0, 0x01, 0xc0}},
	} {
		found, err := Probe(disk(size, map[int64][]byte{tt.at: tt.b}), size)
		if err != nil || len(found) != 1 || found[0].Name != tt.want {
			t.Errorf("%s at %d: found %q, %v", tt.want, tt.at, names(found), err)
		}
	}
}

// TestEverySignatureIsFound puts every magic of the table to its places.
func TestEverySignatureIsFound(t *testing.T) {
	const size = 256 << 20
	for i, s := range signatures {
		if s.check != nil {
			continue // TestProbe has those
		}
		for _, at := range s.places(size) {
			found, err := Probe(disk(size, map[int64][]byte{at: s.magic}), size)
			if err != nil || len(found) != 1 || found[0].Name != s.name || !slices.Equal(found[0].Offsets, []int64{at}) {
				t.Errorf("line %d, %s at %d: found %v, %v", i, s.name, at, found, err)
			}
		}
	}
}

func TestSeveralAtOnce(t *testing.T) {
	found, err := Probe(disk(1<<20, map[int64][]byte{0: []byte("XFSB"), 512: []byte("EFI PART"), 1<<20 - 512: []byte("EFI PART")}), 1<<20)
	if err != nil || len(found) != 2 {
		t.Errorf("found %q, %v", names(found), err)
	}
}

func TestNothing(t *testing.T) {
	for _, size := range []int64{0, 512, 4096, 5120, 65536, 1 << 20, 1<<20 + 512, 1 << 40} {
		if found, err := Probe(disk(size, nil), size); err != nil || len(found) != 0 {
			t.Errorf("blank disk of %d bytes: %q, %v", size, names(found), err)
		}
	}
	b := make([]byte, 1<<20)
	rng := rand.New(rand.NewSource(1))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	if found, err := Probe(bytes.NewReader(b), int64(len(b))); err != nil || len(found) != 0 {
		t.Errorf("random data: %q, %v", names(found), err)
	}
}

func TestADiskThatCannotBeReadIsNotBlank(t *testing.T) {
	broken := errors.New("medium error")
	if _, err := Probe(&image{size: 1 << 20, fail: broken}, 1<<20); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// FuzzProbe looks at disks that are zero but for two places.
func FuzzProbe(f *testing.F) {
	label := append([]byte("SWAPBACK"), make([]byte, 184-8)...)
	copy(label[120:], "tank")
	f.Add(uint32(8192), uint32(4096), label, uint32(510), []byte{0x55, 0xaa})
	f.Add(uint32(1<<20), uint32(0), []byte("XFSB"), uint32(1<<20-512), []byte("EFI PART"))
	f.Fuzz(func(t *testing.T, size, at uint32, a []byte, bt uint32, b []byte) {
		size -= size % 512
		found, err := Probe(disk(int64(size), map[int64][]byte{int64(at): a, int64(bt): b}), int64(size))
		if err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		for _, f := range found {
			// What is on a disk is printed.
			if len(f.Name) > 128 || f.Name == "" || strings.ContainsFunc(f.Name, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("found %q", f.Name)
			}
			for _, off := range f.Offsets {
				if off < 0 || off >= int64(size) {
					t.Errorf("%s at %d of %d bytes", f, off, size)
				}
			}
		}
	})
}
