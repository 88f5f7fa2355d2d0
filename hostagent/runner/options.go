// Package runner runs jobs: it mounts, takes save points, runs the steps, and
// when one fails puts the volumes back to the last save point and goes on from
// there, or ends.
package runner

import (
	"io"
	"log/slog"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent"
	"github.com/swapback/swapback/hostagent/job"
)

// Exit codes of a run.
const (
	ExitDone        = 0 // all steps done, with or without recoveries
	ExitFailed      = 1 // failed; the volumes are at the save point, or left as the job asked
	ExitRefused     = 2 // not started: nothing was done
	ExitNotRestored = 3 // failed, and the volumes are not at a save point; the outcome explains
)

// Options say what to run and where to keep what.
type Options struct {
	Service api.Service
	Job     *job.Job
	File    string // the job file, for messages
	// StateDir keeps a state for each job, LogDir the logs unless the job
	// names a folder, RunDir the locks (it must be the same for all agents of
	// the machine).
	StateDir, LogDir, RunDir string
	// Terminal gets the story as people read it; nil for none.
	Terminal io.Writer
	// Anew starts although the last run died half-way.
	Anew bool
	// UnmountWait bounds how long an unmount is tried again while the
	// filesystem is busy; default 15 s.
	UnmountWait time.Duration
	// DaemonWait bounds the wait for a daemon that does not answer when a
	// save point or a recovery is due; default two minutes.
	DaemonWait time.Duration
	Logger     *slog.Logger
}

func (o *Options) setDefaults() {
	if o.UnmountWait == 0 {
		o.UnmountWait = 15 * time.Second
	}
	if o.DaemonWait == 0 {
		o.DaemonWait = 2 * time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Job.Logs != "" {
		o.LogDir = o.Job.Logs
	}
}

// Result tells how a run ended.
type Result struct {
	Job      string  `json:"job"`
	ExitCode int     `json:"exit_code"`
	Outcome  string  `json:"outcome"` // sentences
	Seconds  float64 `json:"seconds"`
	// Backup is the last save point.
	Backup     string          `json:"backup,omitempty"`
	SavePoints []SavePointTime `json:"save_points"`
	Steps      []StepTime      `json:"steps"`
	Recoveries []Recovery      `json:"recoveries"`
	Warnings   []string        `json:"warnings,omitempty"`
	Log        string          `json:"log,omitempty"`
	Events     string          `json:"events,omitempty"`
}

// SavePointTime is a save point that was taken.
type SavePointTime struct {
	Step    string  `json:"step"` // that it is before
	Backup  string  `json:"backup"`
	Bytes   int64   `json:"bytes"` // of the volumes
	Data    int64   `json:"data_bytes"`
	Seconds float64 `json:"seconds"`
}

// StepTime is one attempt of a step.
type StepTime struct {
	Step     string  `json:"step"`
	Attempt  int     `json:"attempt"`
	OK       bool    `json:"ok"`
	ExitCode int     `json:"exit_code"`
	Seconds  float64 `json:"seconds"`
}

// Recovery is one recovery of a run.
type Recovery struct {
	hostagent.RecoverResult
	Step           string  `json:"step"` // that had failed
	UnmountSeconds float64 `json:"unmount_seconds"`
	MountSeconds   float64 `json:"mount_seconds"`
	WholeSeconds   float64 `json:"whole_seconds"` // from the failure to the volumes being mounted again
}
