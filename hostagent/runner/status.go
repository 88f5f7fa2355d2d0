package runner

import (
	"context"
	"fmt"
	"strings"

	"github.com/swapback/swapback/api"
)

// Explain says in sentences where a run stands and, when its agent died, what
// that means for the volumes and what to do. It asks the daemon what the volumes
// show; svc may be nil or not answer.
func Explain(ctx context.Context, svc api.Service, s *State) []string {
	when := s.Started.Local().Format("2006-01-02 15:04:05")
	switch {
	case s.Phase == Ended:
		code := 0
		if s.ExitCode != nil {
			code = *s.ExitCode
		}
		return append([]string{fmt.Sprintf("ended with exit code %d; began %s, ended %s", code, when, s.Updated.Local().Format("2006-01-02 15:04:05"))},
			strings.Split(s.Outcome, "\n")...)
	case !s.Died():
		return []string{fmt.Sprintf("running since %s (process %d): %s", when, s.Agent.PID, s.doing())}
	}
	lines := []string{fmt.Sprintf("DIED: the agent (process %d, begun %s) ended without saying how, during: %s", s.Agent.PID, when, s.doing())}
	if s.StepAlive() {
		lines = append(lines, fmt.Sprintf("the step is still running, as process %d", s.Process.PID))
	}
	lines = append(lines, s.meaning()...)
	if s.Phase == Recovering {
		lines = append(lines, s.contents(ctx, svc)...)
	}
	for _, v := range s.Volumes {
		if v.Mount != "" {
			lines = append(lines, fmt.Sprintf("%s may still be mounted on %s", v.Name, v.Mount))
		}
	}
	if s.Backup != "" && s.Phase != Starting {
		lines = append(lines, fmt.Sprintf("to go back to the save point before step %s: unmount, then swapback recover %s --from %s --repo %s",
			s.BackupStep, strings.Join(s.names(), " "), s.Backup, s.Repository))
	}
	return lines
}

func (s *State) names() []string {
	var names []string
	for _, v := range s.Volumes {
		names = append(names, v.Name)
	}
	return names
}

// doing says what the run is at.
func (s *State) doing() string {
	title := fmt.Sprintf("step %d/%d %s", s.StepNumber, s.Steps, s.Step)
	switch s.Phase {
	case Starting:
		return "making the volumes ready"
	case SavePoint:
		return "taking the save point before " + title
	case Stepping:
		if s.Attempt > 1 {
			title += fmt.Sprintf(", attempt %d", s.Attempt)
		}
		return title
	case Recovering:
		phase := "recovery"
		if s.Recovery != nil {
			phase += ", " + s.Recovery.Phase
		}
		return phase + " after " + title + " failed"
	case Ending:
		return "putting the volumes away after the last step"
	}
	return string(s.Phase)
}

// meaning says what the death means for the volumes.
func (s *State) meaning() []string {
	switch s.Phase {
	case Starting:
		return []string{"no step has run; the volumes are as they were"}
	case SavePoint:
		return []string{"the volumes hold the work of the steps before it; the save point was not finished"}
	case Stepping:
		text := "the volumes hold whatever the step had done by then"
		if s.Backup == "" {
			text += "; no save point was taken"
		}
		return []string{text}
	case Recovering:
		return []string{"each volume shows either all of the failed data or all of the save point"}
	case Ending:
		return []string{"all steps were done; the volumes hold their work"}
	}
	return nil
}

// contents says which of the two contents each volume shows after a recovery
// that died.
func (s *State) contents(ctx context.Context, svc api.Service) []string {
	if s.Recovery != nil && len(s.Recovery.Pairs) > 0 {
		return positions(ctx, svc, s.Recovery)
	}
	// The pairs are recorded before anything is restored.
	var lines []string
	for _, v := range s.Volumes {
		lines = append(lines, v.Name+" shows the failed data: the recovery had changed nothing yet")
	}
	return lines
}

// positions asks the daemon which of the two contents each volume shows.
func positions(ctx context.Context, svc api.Service, r *RecoveryState) []string {
	var lines []string
	for _, p := range r.Pairs {
		var v api.Volume
		err := fmt.Errorf("no daemon to ask")
		if svc != nil {
			v, err = svc.Volume(ctx, p.Volume)
		}
		switch {
		case err != nil:
			lines = append(lines, fmt.Sprintf("%s: position %s is the failed data; what it shows now could not be found out: %v", p.Volume, p.FailedPosition, err))
		case v.Position.ID == p.FailedPosition:
			lines = append(lines, fmt.Sprintf("%s shows the failed data: the swap has not happened; %s may hold an incomplete restore, if it is there", p.Volume, p.Spare))
		default:
			lines = append(lines, fmt.Sprintf("%s shows the save point: the swap has happened", p.Volume), quarantineLine(ctx, svc, p))
		}
	}
	return lines
}

func quarantineLine(ctx context.Context, svc api.Service, p RecoveryPair) string {
	v, err := svc.Volume(ctx, p.Spare)
	switch {
	case err != nil || v.Position.ID != p.FailedPosition:
		return fmt.Sprintf("the failed data is position %s, which %s does not show", p.FailedPosition, p.Spare)
	case v.Position.Quarantine != nil:
		return fmt.Sprintf("the failed data is %s, in quarantine", p.Spare)
	}
	return fmt.Sprintf("the failed data is %s, not in quarantine yet: swapback volume quarantine %s", p.Spare, p.Spare)
}
