// Package job reads job files: what is to be done, on which volumes, and to
// which save points a failed step returns. Reading is strict, every mistake is
// listed with its line, and nothing outside the file is looked at.
//
// [Example] is an annotated job file with every key.
package job

import (
	_ "embed"
	"time"
)

// Example is an annotated job file.
//
//go:embed testdata/example.yaml
var Example string

// Job is a sequence of steps on some volumes.
type Job struct {
	Name       string `json:"name"`
	Repository string `json:"repository"` // where save points go
	// What opens the repository where it is encrypted: a file whose first line is
	// the passphrase, a shell command that prints it, or age identities.
	PassphraseFile    string   `json:"passphrase_file,omitempty"`
	PassphraseCommand string   `json:"passphrase_command,omitempty"`
	IdentityFiles     []string `json:"identity_files,omitempty"`
	Volumes           []Volume `json:"volumes"`
	Steps             []Step   `json:"steps"`
	// OnFailure is what happens when a step has failed for good.
	OnFailure OnFailure `json:"on_failure"`
	// KeepBackups is how many save points of this job stay in the repository
	// after a run that succeeded; 0 keeps all.
	KeepBackups int `json:"keep_backups"`
	// Logs is the folder for logs, empty for the agent's.
	Logs string `json:"logs,omitempty"`
}

// OnFailure is a policy for a step that has failed for good.
type OnFailure string

const (
	// Restore brings the volumes back to the last save point.
	Restore OnFailure = "restore"
	// Leave leaves everything as the failed step left it.
	Leave OnFailure = "leave"
)

// Volume is a volume that the job works on.
type Volume struct {
	Name string `json:"name"` // NAME, POOL/NAME or UUID
	// Mount is where it is to be mounted, empty when the steps use the block
	// device itself.
	Mount   string   `json:"mount,omitempty"`
	FSType  string   `json:"fstype,omitempty"` // empty: by what is on it
	Options []string `json:"options,omitempty"`
	// Spare names an unused volume to restore onto first, empty to have one
	// chosen or created.
	Spare string `json:"spare,omitempty"`
}

// Step is one command.
type Step struct {
	Name    string            `json:"name"`
	Run     Command           `json:"run"`
	User    string            `json:"user,omitempty"` // empty: the agent's
	Env     map[string]string `json:"env,omitempty"`
	Workdir string            `json:"workdir,omitempty"`
	Timeout time.Duration     `json:"timeout,omitempty"` // 0: none
	// SavePoint takes a backup of all volumes before the step.
	SavePoint bool `json:"save_point"`
	// Retries is how often the job goes back to the save point and on from
	// there when this step fails.
	Retries int `json:"retries"`
	// Recover names the volumes that go back when this step fails.
	Recover []string `json:"recover"`
}

// Command is what a step runs: a script for "sh -e", which ends at the first
// command that fails, so that a failure half-way is the step's failure; or a
// program with its arguments. Exactly one of the two is set.
type Command struct {
	Shell string   `json:"shell,omitempty"`
	Argv  []string `json:"argv,omitempty"`
}

// VolumeNames returns the names of all volumes.
func (j *Job) VolumeNames() []string {
	names := make([]string, len(j.Volumes))
	for i, v := range j.Volumes {
		names[i] = v.Name
	}
	return names
}
