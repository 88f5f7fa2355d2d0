package api

import (
	"strings"
	"unicode"

	"github.com/danielgtaylor/huma/v2"
)

// What a request may hold is written at its fields, as tags that are checked
// before the service sees it and that the OpenAPI document shows. Items of lists
// take no tags: their bounds are here.

// diskPath is an absolute path without a control character.
const diskPath = `^/\P{C}*$`

// unclean is what filepath.Clean would take away. A path that says one thing
// and means another is no name of a disk.
const unclean = `//|/\.\.?(/|$)|./$`

// TransformSchema bounds the paths of the disks.
func (CreatePoolRequest) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	longest := 4095 // PATH_MAX in linux/limits.h, with its zero byte
	disk := s.Properties["disks"].Items
	disk.MaxLength = &longest
	disk.Pattern, disk.PatternDescription = diskPath, "a path from the root, such as /dev/nvme0n1"
	disk.Not = &huma.Schema{Type: huma.TypeString, Pattern: unclean}
	return s
}

// TransformSchema bounds the names of the volumes.
func (SnapshotRequest) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	shortest, longest := 1, 129
	name := s.Properties["volumes"].Items
	name.MinLength, name.MaxLength = &shortest, &longest
	return s
}

// Reason makes any text, such as the output of a program, a reason that the
// daemon takes: on one line, without control characters, and not too long.
func Reason(text string) string {
	clean := strings.Map(func(r rune) rune {
		if unicode.Is(unicode.C, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "·"))
	clean = strings.Join(strings.Fields(clean), " ")
	if r := []rune(clean); len(r) > MaxReason {
		clean = string(r[:MaxReason])
	}
	return clean
}
