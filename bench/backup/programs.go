package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// passphrase encrypts every repository. It guards nothing.
const passphrase = "a passphrase for a measurement"

// program is something that backs up a file. Each has a folder of its own for
// its repository and whatever else it keeps.
type program struct {
	name, colour, about string
	version             []string // prints it
	init                func(home string) command
	// create backs up the image; the backup gets a name where backups have names.
	// Nil: the program copies only.
	create func(home, name, image string) command
	// restore brings the latest backup back, which has the name, and says where
	// it lies then. The folder target is empty.
	restore func(home, name, image, target string) (command, string)
	// changed backs up the image like create, and is told in a file what may have
	// changed since the latest backup. Nil: the program can't be told.
	changed func(home, name, image, changes string) command
	repo    string // in home
}

func programs(swapback string) []program {
	ours := func(home string, args ...string) command {
		return command{args: append([]string{swapback}, args...), dir: home, env: []string{
			"SWAPBACK_REPO=" + filepath.Join(home, "repo"), "SWAPBACK_PASSPHRASE_FILE=" + filepath.Join(home, "passphrase")}}
	}
	borg := func(home, dir string, args ...string) command {
		return command{args: append([]string{"borg"}, args...), dir: dir, env: []string{
			"BORG_REPO=" + filepath.Join(home, "repo"), "BORG_BASE_DIR=" + home, "BORG_PASSPHRASE=" + passphrase}}
	}
	restic := func(home string, args ...string) command {
		return command{args: append([]string{"restic"}, args...), dir: home, env: []string{
			"RESTIC_REPOSITORY=" + filepath.Join(home, "repo"), "RESTIC_PASSWORD=" + passphrase,
			"HOME=" + home, "RESTIC_CACHE_DIR=" + filepath.Join(home, "cache")}}
	}
	return []program{{
		name: "swapback", colour: "#1f5fae", about: "swapback backup create --source",
		version: []string{swapback, "version"}, repo: "repo",
		init: func(home string) command { return ours(home, "repo", "init") },
		create: func(home, name, image string) command {
			return ours(home, "backup", "create", "--source", "disk="+image, "--json")
		},
		changed: func(home, name, image, changes string) command {
			return ours(home, "backup", "create", "--source", "disk="+image, "--changes", changes, "--json")
		},
		restore: func(home, name, image, target string) (command, string) {
			file := filepath.Join(target, "disk")
			return ours(home, "backup", "restore", "latest", "--to-file", file, "--json"), file
		},
	}, {
		name: "borg", colour: "#b06a1c", about: "borg create, encryption repokey",
		version: []string{"borg", "--version"}, repo: "repo",
		init:   func(home string) command { return borg(home, home, "init", "--encryption=repokey") },
		create: func(home, name, image string) command { return borg(home, home, "create", "::"+name, image) },
		restore: func(home, name, image, target string) (command, string) {
			return borg(home, target, "extract", "::"+name), filepath.Join(target, image)
		},
	}, {
		name: "restic", colour: "#7a4fa3", about: "restic backup",
		version: []string{"restic", "version"}, repo: "repo",
		init:   func(home string) command { return restic(home, "init") },
		create: func(home, name, image string) command { return restic(home, "backup", image) },
		restore: func(home, name, image, target string) (command, string) {
			return restic(home, "restore", "latest", "--target", target), filepath.Join(target, image)
		},
	}, {
		name: "cp", colour: "#7b8592", about: "cp",
		version: []string{"cp", "--version"},
		restore: func(home, name, image, target string) (command, string) {
			file := filepath.Join(target, "disk")
			return command{args: []string{"cp", image, file}, dir: home}, file
		},
	}}
}

// packages are Debian's that have the peers.
var packages = map[string]string{"borg": "borgbackup", "restic": "restic"}

// findVersions runs all programs once and says what is missing.
func findVersions(ctx context.Context, list []program) (map[string]string, error) {
	versions := make(map[string]string)
	var missing []string
	for _, p := range list {
		out, err := exec.CommandContext(ctx, p.version[0], p.version[1:]...).Output()
		if err != nil {
			what := p.name + ": " + err.Error()
			if pkg, ok := packages[p.name]; ok {
				what += " (Debian's package " + pkg + ")"
			}
			missing = append(missing, what)
			continue
		}
		line, _, _ := strings.Cut(string(out), "\n")
		versions[p.name] = line
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("can't be run: %s", strings.Join(missing, "; "))
	}
	return versions, nil
}

// prepare makes the program's folder and repository anew.
func (p program) prepare(ctx context.Context, home string) error {
	if err := os.RemoveAll(home); err != nil {
		return err
	}
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(home, "passphrase"), []byte(passphrase), 0o600); err != nil {
		return err
	}
	if p.init == nil {
		return nil
	}
	_, _, err := measure(ctx, p.init(home))
	return err
}
