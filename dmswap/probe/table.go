package probe

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// signature is one line of the table: a magic number and where it can be.
type signature struct {
	name  string
	magic []byte
	at    []int64 // bytes from the start; negative: from the end
	// find, if set, gives more places.
	find func(size int64) []int64
	// need is how many bytes check wants from the magic on.
	need int
	// check confirms and may give a better name. Optional.
	check func(b []byte, r *reader) (name string, ok bool)
}

func (s *signature) places(size int64) []int64 {
	var list []int64
	for _, at := range s.at {
		if at < 0 {
			at += size
		}
		list = append(list, at)
	}
	if s.find != nil {
		list = append(list, s.find(size)...)
	}
	return list
}

// signatures is what disks are looked through for. The comments name where a
// format is described.
var signatures = []signature{
	// dmswap/label.go
	{name: "a swapback pool", magic: []byte("SWAPBACK"), at: []int64{4096}, need: 188, check: swapbackPool},

	// Partition tables. UEFI specification, "GUID Partition Table Header":
	// block 1 and the last block, of 512 or 4096 bytes.
	{name: "a GPT partition table", magic: []byte("EFI PART"), at: []int64{512, 4096, -512, -4096}},
	{name: "a boot sector or partition table", magic: []byte{0x55, 0xaa}, at: []int64{510}, check: bootSector},

	// Volume managers, RAID, encryption.
	// lvm2 lib/format_text/layout.h: a label in one of the first 4 sectors
	{name: "an LVM physical volume", magic: []byte("LABELONE"), at: []int64{0, 512, 1024, 1536}},
	// linux/raid/md_p.h: versions 1.2 at 4 KiB, 1.1 at 0, 1.0 and 0.90 near the end
	{name: "a member of a Linux RAID (md)", magic: []byte{0xfc, 0x4e, 0x2b, 0xa9}, at: []int64{4096, 0}, find: mdAtEnd},
	// cryptsetup, LUKS on-disk format; LUKS2 has a second header
	{name: "LUKS encryption", magic: []byte("LUKS\xba\xbe"), at: []int64{0}},
	{name: "LUKS encryption (second header)", magic: []byte("SKUL\xba\xbe"), find: luksSecond},
	{name: "BitLocker encryption", magic: []byte("-FVE-FS-"), at: []int64{3}},
	// drivers/md/bcache, fs/bcachefs: a UUID as magic in the superblock at 4 KiB
	{name: "bcache", magic: []byte("\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"), at: []int64{4096 + 24}},
	{name: "a bcachefs filesystem", magic: []byte("\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"), at: []int64{4096 + 24}},
	// openzfs include/sys/uberblock_impl.h, in either byte order
	{name: "a member of a ZFS pool", magic: []byte("\x0c\xb1\xba\x00\x00\x00\x00\x00"), find: zfsUberblocks},
	{name: "a member of a ZFS pool", magic: []byte("\x00\x00\x00\x00\x00\xba\xb1\x0c"), find: zfsUberblocks},
	{name: "a Ceph BlueStore device", magic: []byte("bluestore block device"), at: []int64{0}},
	{name: "a VDO device", magic: []byte("dmvdo001"), at: []int64{0}},
	{name: "a persistent dm-snapshot store", magic: []byte("SnAp"), at: []int64{0}},
	{name: "a dm-integrity device", magic: []byte("integrt\x00"), at: []int64{0}},
	{name: "a Stratis device", magic: []byte("!Stra0tis\x86\xff\x02^\x41rh"), at: []int64{512 + 4, 4608 + 4}},

	// Swap: the last 10 bytes of the first page, of 4, 16 or 64 KiB
	{name: "swap space", magic: []byte("SWAPSPACE2"), at: []int64{4096 - 10, 16384 - 10, 65536 - 10}},
	{name: "swap space", magic: []byte("SWAP-SPACE"), at: []int64{4096 - 10, 16384 - 10, 65536 - 10}},
	{name: "a suspended system (hibernation image)", magic: []byte("S1SUSPEND\x00"), at: []int64{4096 - 10}},

	// Filesystems.
	// fs/ext4/ext4.h: s_magic at 0x38 of the superblock at 1 KiB
	{name: "an ext2 filesystem", magic: []byte{0x53, 0xef}, at: []int64{1024 + 0x38}, need: 0x30, check: extKind},
	{name: "an XFS filesystem", magic: []byte("XFSB"), at: []int64{0}},
	// fs/btrfs: superblocks at 64 KiB and 64 MiB
	{name: "a btrfs filesystem", magic: []byte("_BHRfS_M"), at: []int64{65536 + 64, 64<<20 + 64}},
	{name: "an F2FS filesystem", magic: []byte{0x10, 0x20, 0xf5, 0xf2}, at: []int64{1024, 5120}},
	{name: "a FAT filesystem", magic: []byte("FAT12   "), at: []int64{54}},
	{name: "a FAT filesystem", magic: []byte("FAT16   "), at: []int64{54}},
	{name: "a FAT filesystem", magic: []byte("FAT32   "), at: []int64{82}},
	{name: "an exFAT filesystem", magic: []byte("EXFAT   "), at: []int64{3}},
	{name: "an NTFS filesystem", magic: []byte("NTFS    "), at: []int64{3}},
	{name: "a ReFS filesystem", magic: []byte("ReFS\x00\x00\x00\x00"), at: []int64{3}},
	{name: "an ISO 9660 filesystem", magic: []byte("CD001"), at: []int64{32768 + 1}},
	{name: "a UDF filesystem", magic: []byte("NSR0"), at: []int64{34816 + 1, 36864 + 1}},
	{name: "a squashfs filesystem", magic: []byte("hsqs"), at: []int64{0}},
	{name: "an EROFS filesystem", magic: []byte{0xe2, 0xe1, 0xf5, 0xe0}, at: []int64{1024}},
	{name: "a JFS filesystem", magic: []byte("JFS1"), at: []int64{32768}},
	{name: "a NILFS2 filesystem", magic: []byte{0x34, 0x34}, at: []int64{1024 + 6}, need: 2, check: nilfs},
	{name: "a GFS2 filesystem", magic: []byte{0x01, 0x16, 0x19, 0x70, 0, 0, 0, 1}, at: []int64{65536}},
	{name: "an OCFS2 filesystem", magic: []byte("OCFSV2"), at: []int64{1024, 2048, 4096, 8192}},
	{name: "a ReiserFS filesystem", magic: []byte("ReIsEr"), at: []int64{65536 + 52, 8192 + 52}},
	{name: "an HFS+ filesystem", magic: []byte{'H', '+', 0, 4}, at: []int64{1024}},
	{name: "an APFS container", magic: []byte("NXSB"), at: []int64{32}},
	{name: "a VMFS filesystem", magic: []byte{0x0d, 0xd0, 0x01, 0xc0}, at: []int64{1 << 20}},
}

func swapbackPool(b []byte, _ *reader) (string, bool) {
	name := text(b[120:184])
	for _, c := range name {
		if c < ' ' || c > '~' {
			return "", true
		}
	}
	if name == "" {
		return "", true
	}
	found := fmt.Sprintf("a member of the swapback pool %q", name)
	if le32(b[184:]) == 1 { // there may be no such pool, so nobody would find it
		found += ", which was being made or deleted"
	}
	return found, true
}

// bootSector tells partition tables from what else ends a sector with 55 AA:
// the boot sectors of FAT and NTFS, which the table finds by themselves.
func bootSector(_ []byte, r *reader) (string, bool) {
	b, err := r.read(0, 512)
	if err != nil {
		return "", false
	}
	used := false
	for i := range 4 {
		e := b[446+16*i : 446+16*(i+1)]
		if e[0] != 0 && e[0] != 0x80 {
			return "", true // not a table, but nobody writes 55 AA by accident
		}
		used = used || e[4] != 0
	}
	if used {
		return "a DOS partition table", true
	}
	return "", true
}

// mdAtEnd gives the places of the superblocks 1.0 and 0.90, as md computes
// them from the size.
func mdAtEnd(size int64) []int64 {
	sectors := size / 512
	return []int64{
		((sectors - 16) &^ 7) * 512,
		size&^0xffff - 0x10000,
	}
}

// luksSecond gives the possible places of the second LUKS2 header (LUKS2
// on-disk format, table "Possible LUKS2 secondary header offsets").
func luksSecond(int64) []int64 {
	var list []int64
	for at := int64(0x4000); at <= 0x400000; at *= 2 {
		list = append(list, at)
	}
	return list
}

// zfsUberblocks gives the places of the uberblocks in the four labels of
// 256 KiB, two at each end: 128 KiB into the label, 1 to 8 KiB apart.
func zfsUberblocks(size int64) []int64 {
	const labelSize, ring, step = 256 << 10, 128 << 10, 1 << 10
	end := size / labelSize * labelSize
	var list []int64
	for _, l := range []int64{0, labelSize, end - 2*labelSize, end - labelSize} {
		for at := int64(0); at < ring; at += step {
			list = append(list, l+ring+at)
		}
	}
	return list
}

// extKind tells ext2, 3 and 4 apart by the feature words of the superblock.
// b begins at s_magic, 0x38.
func extKind(b []byte, _ *reader) (string, bool) {
	const (
		hasJournal = 0x4
		ext4Only   = 0x40 | 0x80 | 0x200 // extents, 64bit, flex_bg
	)
	compat, incompat := le32(b[0x5c-0x38:]), le32(b[0x60-0x38:])
	switch {
	case incompat&ext4Only != 0:
		return "an ext4 filesystem", true
	case compat&hasJournal != 0:
		return "an ext3 filesystem", true
	}
	return "", true
}

// nilfs confirms a magic of two bytes by the checksum's seed and size fields.
func nilfs(_ []byte, r *reader) (string, bool) {
	b, err := r.read(1024, 16)
	if err != nil {
		return "", false
	}
	size := le16(b[8:])
	return "", size >= 64 && size <= 1024 && !bytes.Equal(b[:4], []byte{0x34, 0x34, 0x34, 0x34}) && binary.LittleEndian.Uint32(b) <= 64
}
