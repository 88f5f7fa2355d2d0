package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// row is one kind of load: a section of a job file.
type row struct{ name, file string }

// Job files. The rows of goalFile are compared with published figures of other
// servers and are measured in exact mode as those were, bounded by the number
// of requests; all others are bounded by time.
const (
	goalFile = "goal.fio"
	rowsFile = "rows.fio"
)

// rowsOf lists what a run measures.
func rowsOf(jobs, mode string, short bool) ([]row, error) {
	goals, err := sections(filepath.Join(jobs, goalFile))
	if err != nil {
		return nil, err
	}
	all, err := sections(filepath.Join(jobs, rowsFile))
	if err != nil {
		return nil, err
	}
	var list []row
	for _, name := range all {
		goal := slices.Contains(goals, name)
		switch {
		case short && !goal:
		case goal && mode == modeExact:
			list = append(list, row{name, goalFile})
		default:
			list = append(list, row{name, rowsFile})
		}
	}
	return list, nil
}

// chosen returns the subjects and rows that filters name; an empty filter
// names all. A name that is not there is an error, as it is a slip.
func choose[T any](list []T, name func(T) string, filter string) ([]T, error) {
	if filter == "" {
		return list, nil
	}
	var out []T
	for _, want := range strings.Split(filter, ",") {
		i := slices.IndexFunc(list, func(t T) bool { return name(t) == want })
		if i < 0 {
			var names []string
			for _, t := range list {
				names = append(names, name(t))
			}
			return nil, fmt.Errorf("there is no %q here; there are %s", want, strings.Join(names, ", "))
		}
		out = append(out, list[i])
	}
	return out, nil
}

// runner measures subjects on a stage.
type runner struct {
	stage    *stage
	subjects []subject
	rows     []row
	rounds   int
	versions versions
}

// run measures everything, rounds times, every second round in the opposite
// order, so that what the machine does meanwhile hits all subjects alike.
func (r *runner) run(ctx context.Context) ([]result, error) {
	samples := map[key][]sample{}
	paths := map[string]string{}
	for round := range r.rounds {
		order := slices.Clone(r.subjects)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range order {
			if s.missing(r.stage) != "" {
				continue
			}
			path, err := r.measureSubject(ctx, s, round == 0, samples)
			if err != nil {
				return nil, fmt.Errorf("subject %s: %w", s.name, err)
			}
			paths[s.name] = path
			r.stage.notice("round %d of %d: measured %s", round+1, r.rounds, s.name)
		}
	}
	var list []result
	for _, s := range r.subjects {
		if why := s.missing(r.stage); why != "" {
			list = append(list, result{Mode: r.stage.mode, Subject: s.name, Missing: why, versions: r.versions})
		}
	}
	for _, row := range r.rows {
		for _, s := range r.subjects {
			k := key{r.stage.mode, s.name, row.name}
			if len(samples[k]) == 0 {
				continue
			}
			res := summarize(samples[k])
			res.Mode, res.Subject, res.Row, res.DataPath = k.Mode, k.Subject, k.Row, paths[s.name]
			res.versions = r.versions
			list = append(list, res)
		}
	}
	addRatios(list)
	return list, nil
}

func (r *runner) measureSubject(ctx context.Context, s subject, first bool, samples map[key][]sample) (dataPath string, err error) {
	up, err := s.start(ctx, r.stage)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, up.stop(context.WithoutCancel(ctx))) }()
	if r.stage.scheduler != "" && !up.ownScheduler {
		if err := setScheduler(up.device, r.stage.scheduler); err != nil {
			return "", err
		}
	}
	for i, row := range r.rows {
		if i == 0 && first && r.stage.mode == modeExact {
			// Everything runs once before it counts: what it is made of comes
			// from the host's folder, at the host's speed.
			if _, err := r.stage.measure(ctx, row, up); err != nil {
				return "", err
			}
		}
		got, err := r.stage.measure(ctx, row, up)
		if err != nil {
			return "", err
		}
		k := key{r.stage.mode, s.name, row.name}
		samples[k] = append(samples[k], got)
	}
	return up.dataPath, nil
}

// measure runs one row on a subject that is up.
func (s *stage) measure(ctx context.Context, r row, up *served) (sample, error) {
	before, err := readCPU("/proc", up.pids)
	if err != nil {
		return sample{}, err
	}
	text, err := s.fio.run(ctx, filepath.Join(s.jobs, r.file), r.name, up.device)
	if err != nil {
		return sample{}, err
	}
	after, err := readCPU("/proc", up.pids)
	if err != nil {
		return sample{}, err
	}
	got, ios, err := parseFio(text)
	if err != nil {
		return sample{}, fmt.Errorf("row %s on %s: %w", r.name, up.device, err)
	}
	got.serverCPU = after.since(before) / ios * 1e6
	return got, nil
}
