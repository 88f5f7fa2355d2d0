package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/swapback/swapback/failpoint"
	"github.com/swapback/swapback/hostagent/job"
	"github.com/swapback/swapback/hostagent/step"
)

// stateVersion is the version of the state file's form.
const stateVersion = 1

// Phase is where a run stands.
type Phase string

// Phases of a run.
const (
	Starting   Phase = "starting"   // nothing has been done to the volumes
	SavePoint  Phase = "save point" // being taken before Step
	Stepping   Phase = "step"       // Step runs
	Recovering Phase = "recovery"   // after Step failed; Recovery tells more
	Ending     Phase = "ending"     // the last step is done
	Ended      Phase = "ended"      // Outcome tells how
)

// State is where a run of a job stands, kept in DIR/JOB.json so that a run
// whose agent died can be told about:
//
//	{"version": 1, "job": …, "phase": …, …}
//
// The file is replaced as a whole, so a reader sees one state or the next.
type State struct {
	Version    int          `json:"version"`
	Job        string       `json:"job"`
	File       string       `json:"file"` // the job file
	Repository string       `json:"repository"`
	Agent      step.Process `json:"agent"`
	Boot       string       `json:"boot"` // boot id of the machine
	Started    time.Time    `json:"started"`
	Updated    time.Time    `json:"updated"`
	Phase      Phase        `json:"phase"`
	Step       string       `json:"step,omitempty"`
	StepNumber int          `json:"step_number,omitempty"` // from 1
	Steps      int          `json:"steps"`
	Attempt    int          `json:"attempt,omitempty"`
	// Process is the step's, while it runs.
	Process *step.Process `json:"process,omitempty"`
	// Backup is the last save point, BackupStep the step that it is before.
	Backup     string         `json:"backup,omitempty"`
	BackupStep string         `json:"backup_step,omitempty"`
	Volumes    []VolumeState  `json:"volumes"`
	Recovery   *RecoveryState `json:"recovery,omitempty"`
	Recoveries int            `json:"recoveries"` // done in this run
	ExitCode   *int           `json:"exit_code,omitempty"`
	Outcome    string         `json:"outcome,omitempty"`
	Log        string         `json:"log,omitempty"`
}

// VolumeState is a volume as the run found it.
type VolumeState struct {
	Name   string `json:"name"` // POOL/NAME
	UUID   string `json:"uuid"`
	Device string `json:"device"`
	Mount  string `json:"mount,omitempty"`
}

// RecoveryState is a recovery under way, or done with nothing recorded after it.
type RecoveryState struct {
	Phase string         `json:"phase"`
	Pairs []RecoveryPair `json:"pairs,omitempty"`
}

// RecoveryPair is a volume and what it is restored onto.
type RecoveryPair struct {
	Volume         string `json:"volume"`
	Spare          string `json:"spare"`
	FailedPosition string `json:"failed_position"`
}

// AgentAlive tells whether the process that wrote the state is still there.
func (s *State) AgentAlive() bool { return s.Boot == bootID() && s.Agent.Alive() }

// StepAlive tells whether the step's process is still there.
func (s *State) StepAlive() bool {
	return s.Process != nil && s.Boot == bootID() && s.Process.Alive()
}

// Died tells whether the run ended without saying how. Such a run may have left
// work half done.
func (s *State) Died() bool { return s.Phase != Ended && !s.AgentAlive() }

// stateFile keeps one job's state.
type stateFile struct {
	path string
	s    State
}

func statePath(dir, job string) string { return filepath.Join(dir, job+".json") }

// ReadState reads the state of a job's last run. The error is
// [fs.ErrNotExist] when it never ran.
func ReadState(dir, name string) (*State, error) {
	if !job.ValidName(name) {
		return nil, fmt.Errorf("%q is no name of a job", name)
	}
	return readStateFile(statePath(dir, name))
}

func readStateFile(path string) (*State, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	s, err := decodeState(text)
	if err != nil {
		return nil, fmt.Errorf("state %s: %w", path, err)
	}
	return s, nil
}

func decodeState(text []byte) (*State, error) {
	s := &State{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, err
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("version %d is not %d: it was written by another swapback-agent", s.Version, stateVersion)
	}
	if s.Job == "" || s.Phase == "" {
		return nil, errors.New("it names no job or phase")
	}
	for _, at := range []time.Time{s.Started, s.Updated} {
		if _, err := at.MarshalJSON(); err != nil { // some are decoded that are not encoded
			return nil, err
		}
	}
	return s, nil
}

func (s *State) encode() ([]byte, error) {
	text, err := json.MarshalIndent(s, "", "  ")
	return append(text, '\n'), err
}

// ReadStates reads the states of all jobs, in the order of their names. Files
// that can't be read are told in the error, beside the states that can.
func ReadStates(dir string) ([]*State, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no job has run yet
	}
	if err != nil {
		return nil, fmt.Errorf("states: %w", err)
	}
	var list []*State
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		s, err := readStateFile(filepath.Join(dir, e.Name()))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, s)
	}
	return list, errors.Join(errs...)
}

// save replaces the file. The folder is synced, so that after a power cut the
// file tells of this state or of a later one.
func (f *stateFile) save() error {
	f.s.Updated = time.Now().UTC()
	text, err := f.s.encode()
	if err != nil {
		return err
	}
	dir := filepath.Dir(f.path)
	tmp, err := os.CreateTemp(dir, ".state-*")
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	defer os.Remove(tmp.Name()) // fails when all went well: it has another name
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	failpoint.Hit("state: new file written")
	if err == nil {
		err = os.Rename(tmp.Name(), f.path)
	}
	failpoint.Hit("state: replaced")
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// bootID is different after every boot (proc_sys_kernel(5)): process numbers
// of another boot mean nothing.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
