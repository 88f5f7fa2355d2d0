package hostagent

import (
	"log/slog"
	"time"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
)

// RecoverOptions says which volumes to bring back, and to what.
type RecoverOptions struct {
	Service api.Service
	Repo    *backup.Repository
	// Locks keep others from the volumes and the spares while this recovery is
	// under way; nil for none.
	Locks *Locks
	// Volumes of one pool. All of them are swapped in one commit, or none.
	Volumes []string
	// From is the backup: an id, or a unique beginning of one. [Latest] and empty
	// mean the newest that holds all the volumes.
	From string
	// Onto names an unused volume for a volume, both as the caller likes to
	// name them. For the others one is chosen or created.
	Onto map[string]string
	// Busy is the swap's policy, default hold; HoldFor its bound, default the
	// daemon's.
	Busy    string
	HoldFor time.Duration
	// AllowHolders swaps although somebody holds a volume's device open.
	AllowHolders bool
	// VerifyAfter reads the restored volumes back before they are swapped.
	VerifyAfter bool
	// AnswerWait bounds the wait for a daemon that went away in the middle of
	// the swap; default two minutes. A restarted one answers within seconds.
	AnswerWait time.Duration
	// Reason, Job, Step and ExitCode go on the label of the failed data.
	Reason   string
	Job      string
	Step     string
	ExitCode int
	// Phase is called when a phase begins; it may be nil.
	Phase func(RecoverPhase, RecoverResult)
	// Progress may be nil.
	Progress func(backup.Progress)
	Logger   *slog.Logger
}

// Latest is the newest backup: of the volumes for a recovery, else of the
// repository.
const Latest = "latest"

// RecoverPhase is a part of a recovery.
type RecoverPhase string

// Phases of a recovery, in their order.
const (
	PhaseChoose     RecoverPhase = "choose"     // volumes, backup, unused volumes
	PhaseRestore    RecoverPhase = "restore"    // onto the unused volumes
	PhaseSwap       RecoverPhase = "swap"       // all pairs at once
	PhaseQuarantine RecoverPhase = "quarantine" // labels on the failed data
)

// RecoverResult tells what a recovery did. It is filled as far as the recovery
// came, also when it failed.
type RecoverResult struct {
	Backup  string            `json:"backup"`
	Created time.Time         `json:"created"` // instant of the backup
	Volumes []RecoveredVolume `json:"volumes"`
	Swap    api.SwapResult    `json:"swap"`
	Phases  []PhaseTime       `json:"phases"`
	Started time.Time         `json:"started"`
	Seconds float64           `json:"seconds"` // the whole recovery
	// Warnings are what is not as it should be although the volumes are back.
	Warnings []string `json:"warnings,omitempty"`
}

// RecoveredVolume is one volume of a recovery.
type RecoveredVolume struct {
	Volume string `json:"volume"` // POOL/NAME; shows the backup's content now
	// Spare is the volume that was restored onto; it shows the failed data now.
	Spare        string               `json:"spare"`
	SpareCreated bool                 `json:"spare_created"`
	Restore      backup.RestoreResult `json:"restore"`
	// FailedPosition and GoodPosition are the ids of the two contents.
	FailedPosition string `json:"failed_position"`
	GoodPosition   string `json:"good_position"`
	Quarantined    bool   `json:"quarantined"`
}

// PhaseTime is how long a phase took.
type PhaseTime struct {
	Phase   RecoverPhase `json:"phase"`
	Seconds float64      `json:"seconds"`
}
