// Package version says which build of swapback this is.
package version

import "runtime/debug"

// Version is the release, set by the linker (-X …/version.Version=v1.2.3).
// A build without it is called by its commit, see [String].
var Version = ""

// String returns the release, or the commit that the program was built from,
// or "devel" when neither is known.
func String() string {
	if Version != "" {
		return Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	revision, dirty := "", ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+changes"
			}
		}
	}
	if revision == "" {
		return "devel"
	}
	return revision + dirty
}
