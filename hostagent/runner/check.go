package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/hostagent"
	"github.com/swapback/swapback/hostagent/job"
	"github.com/swapback/swapback/hostagent/mount"
	"github.com/swapback/swapback/hostagent/step"
)

// Report is what a check of a job found.
type Report struct {
	Job string `json:"job"`
	OK  bool   `json:"ok"`
	// Problems keep the job from starting: it could not run, or could not be
	// recovered now.
	Problems []string `json:"problems"`
	// Notes tell what a run would do.
	Notes []string `json:"notes"`
}

func (r *Report) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// prepared is what a check looked up, for the run that follows.
type prepared struct {
	report  Report
	volumes []*volume
	repo    *backup.Repository // nil when it could not be opened
}

// Check tells whether a job could run, and be recovered, now. It changes nothing
// and does not look at whether the job is running.
func Check(ctx context.Context, o Options) (Report, error) {
	o.setDefaults()
	p, err := prepare(ctx, o)
	if err != nil {
		return Report{}, err
	}
	if p.repo != nil {
		err = p.repo.Close()
	}
	return p.report, err
}

// prepare looks everything up and collects what is wrong. The error is for what
// keeps it from looking, such as a daemon that does not answer.
func prepare(ctx context.Context, o Options) (*prepared, error) {
	p := &prepared{report: Report{Job: o.Job.Name, Problems: []string{}, Notes: []string{}}}
	if os.Geteuid() != 0 && slices.ContainsFunc(o.Job.Volumes, func(v job.Volume) bool { return v.Mount != "" }) {
		p.report.problem("not running as root: mounting needs it")
	}
	if _, err := o.Service.Info(ctx); err != nil {
		return nil, err
	}
	for _, want := range o.Job.Volumes {
		if err := p.volume(ctx, o.Service, want); err != nil {
			return nil, err
		}
	}
	if err := p.repository(ctx, o); err != nil {
		return nil, err
	}
	if len(p.volumes) == len(o.Job.Volumes) {
		p.spares(ctx, o)
	}
	for _, s := range o.Job.Steps {
		p.step(s)
	}
	p.outside("the folder for logs", o.LogDir)
	p.outside("the folder for states", o.StateDir)
	if path, local := localPath(o.Job.Repository); local {
		p.outside("the repository", path)
	}
	p.report.OK = len(p.report.Problems) == 0
	return p, nil
}

// volume looks one volume up.
func (p *prepared) volume(ctx context.Context, svc api.Service, want job.Volume) error {
	v, err := svc.Volume(ctx, want.Name)
	if err != nil {
		if api.CodeOf(err) == api.CodeUnavailable || ctx.Err() != nil {
			return err
		}
		p.report.problem("volume %s: %v", want.Name, err)
		return nil
	}
	vol := &volume{want: want, v: v}
	full := vol.full()
	for _, other := range p.volumes {
		if other.v.UUID == v.UUID {
			p.report.problem("volume %s is named twice, as %s and %s", full, other.want.Name, want.Name)
		}
	}
	if first := p.first(); first != nil && first.v.Pool != v.Pool {
		p.report.problem("volumes %s and %s are in different pools: one save point, and one swap, is of one pool", first.full(), full)
	}
	switch {
	case v.Position.Quarantine != nil:
		p.report.problem("volume %s shows data in quarantine: %s (release it first: swapback volume release %s)", full, v.Position.Quarantine.Reason, full)
	case v.State == api.StateFailed:
		p.report.problem("volume %s should be served but is not: %s", full, v.Error)
	case v.Degraded:
		p.report.problem("volume %s is degraded: %s", full, v.Error)
	case v.State == api.StateBusy:
		p.report.problem("volume %s is busy: a swap is under way", full)
	case v.ReadOnly:
		p.report.problem("volume %s is read-only: detach it and attach it writable", full)
	case v.Snapshot:
		p.report.problem("volume %s is being backed up by somebody else: its save point has to wait for that", full)
	}
	if err := vol.find(ctx, svc); err != nil {
		p.report.problem("%v", err)
	}
	p.mountPoint(vol)
	p.volumes = append(p.volumes, vol)
	return nil
}

func (p *prepared) first() *volume {
	if len(p.volumes) == 0 {
		return nil
	}
	return p.volumes[0]
}

// mountPoint looks at where the volume is to be mounted.
func (p *prepared) mountPoint(v *volume) {
	if v.want.Mount == "" {
		p.report.note("%s is used as a block device", v.full())
		return
	}
	if err := mount.CheckOptions(v.want.Options); err != nil {
		p.report.problem("volume %s: %v", v.full(), err)
	}
	if v.mounted {
		p.report.note("%s is mounted on %s already, and stays so", v.full(), v.want.Mount)
		return
	}
	info, err := os.Stat(v.want.Mount)
	switch {
	case err != nil:
		p.report.problem("volume %s: mount point: %v (make it: mkdir -p %s)", v.full(), err, v.want.Mount)
		return
	case !info.IsDir():
		p.report.problem("volume %s: mount point %s is no directory", v.full(), v.want.Mount)
		return
	}
	if at, err := mount.At(v.want.Mount); err != nil {
		p.report.problem("volume %s: mount point: %v", v.full(), err)
	} else if at != nil {
		p.report.problem("volume %s: %s is mounted on %s already", v.full(), at.Source, v.want.Mount)
	}
	if v.fstype == "" && v.v.Device != "" {
		fstype, err := mount.Detect(v.v.Device)
		if err != nil {
			p.report.problem("volume %s: %v", v.full(), err)
			return
		}
		v.fstype = fstype
	}
	p.report.note("%s will be mounted on %s, and unmounted at the end", v.full(), v.want.Mount)
}

func (p *prepared) repository(ctx context.Context, o Options) error {
	repo, err := backup.Open(ctx, o.Job.Repository, backup.Secret{
		PassphraseFile: o.Job.PassphraseFile, PassphraseCommand: o.Job.PassphraseCommand, IdentityFiles: o.Job.IdentityFiles})
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		p.report.problem("repository: %v", err)
		return nil
	}
	p.repo = repo
	return nil
}

// spares looks whether every volume could be recovered now.
func (p *prepared) spares(ctx context.Context, o Options) {
	var volumes []api.Volume
	onto := map[string]string{}
	for _, v := range p.volumes {
		if v.v.Pool != p.volumes[0].v.Pool {
			return // told already
		}
		volumes = append(volumes, v.v)
		if v.want.Spare != "" {
			onto[v.v.UUID] = v.want.Spare
		}
	}
	found, err := hostagent.FindSpares(ctx, o.Service, volumes, onto)
	if err != nil {
		p.report.problem("the job could not be recovered now: %v", err)
		return
	}
	for _, s := range found {
		how := "is free"
		if s.Create {
			how = "would be created"
		}
		p.report.note("%s/%s would be recovered onto %s, which %s", s.For.Pool, s.For.Name, s.Volume.Name, how)
	}
	pool, err := o.Service.Pool(ctx, volumes[0].Pool)
	switch {
	case err != nil:
		p.report.problem("pool %s: %v", volumes[0].Pool, err)
	case pool.FreeExtents < int64(len(volumes)):
		p.report.problem("pool %s is full: a save point needs room for what is overwritten while it is read", pool.Name)
	}
}

func (p *prepared) step(s job.Step) {
	if s.User != "" {
		if _, err := step.LookupUser(s.User); err != nil {
			p.report.problem("step %s: %v", s.Name, err)
		}
	}
	if s.Workdir == "" || p.onVolume(s.Workdir) {
		return // what lies on a volume is seen when it is mounted
	}
	if info, err := os.Stat(s.Workdir); err != nil {
		p.report.problem("step %s: working directory: %v", s.Name, err)
	} else if !info.IsDir() {
		p.report.problem("step %s: working directory %s is no directory", s.Name, s.Workdir)
	}
}

// onVolume tells whether a path lies below a mount point of the job.
func (p *prepared) onVolume(path string) bool {
	return slices.ContainsFunc(p.volumes, func(v *volume) bool {
		return v.want.Mount != "" && (path == v.want.Mount || strings.HasPrefix(path, v.want.Mount+"/"))
	})
}

// outside refuses a folder on one of the job's volumes: what a recovery needs,
// or tells, must not go with the volume that it brings back.
func (p *prepared) outside(what, path string) {
	if path == "" {
		return
	}
	if p.onVolume(path) || p.onDevice(path) {
		p.report.problem("%s (%s) lies on a volume of the job: put it somewhere else", what, path)
	}
}

// onDevice tells whether a folder, or the nearest that is there, lies on the
// filesystem of one of the volumes.
func (p *prepared) onDevice(path string) bool {
	var st unix.Stat_t
	for {
		err := unix.Stat(path, &st)
		if err == nil {
			break
		}
		if path == "/" || !errors.Is(err, unix.ENOENT) {
			return false
		}
		path = filepath.Dir(path)
	}
	return slices.ContainsFunc(p.volumes, func(v *volume) bool {
		if v.v.Device == "" {
			return false
		}
		number, err := deviceNumber(v.v.Device)
		return err == nil && number != 0 && number == st.Dev
	})
}

func localPath(repository string) (string, bool) {
	if path, ok := strings.CutPrefix(repository, "file://"); ok {
		return path, true
	}
	return repository, filepath.IsAbs(repository)
}
