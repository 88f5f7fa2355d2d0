package job

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"golang.org/x/sys/unix"
)

const (
	// maxFile bounds a job file, in bytes. The parser's time and memory grow with
	// the square of what some files hold.
	maxFile = 64 << 10
	// maxMistakes bounds how many are told.
	maxMistakes = 50
	// maxDepth bounds how deep brackets may nest, and lists that begin in one
	// line ("- - - x"): the parser recurses.
	maxDepth   = 32
	maxRetries = 100
)

var (
	nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	envForm  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// Load reads a job file. Mistakes come back as an [*Error]. Root reads no file
// that another user can write.
func Load(path string) (*Job, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("job file: %w", err)
	}
	defer f.Close()
	if err := checkOwner(f); err != nil {
		return nil, fmt.Errorf("job file %s: %w", path, err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("job file: %w", err)
	}
	return Parse(path, text)
}

// ValidName tells whether a job or step may be called so. Names are parts of
// paths and of variables.
func ValidName(name string) bool { return nameForm.MatchString(name) }

// checkOwner refuses a file that lets another user say what root does, as cron
// does.
func checkOwner(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	remedy := fmt.Sprintf("; its steps would be run by root (chown root %[1]s; chmod go-w %[1]s)", f.Name())
	switch {
	case st.Uid != 0:
		return fmt.Errorf("it belongs to user %d%s", st.Uid, remedy)
	case st.Mode&0o002 != 0:
		return fmt.Errorf("it is writable by everybody%s", remedy)
	case st.Mode&0o020 != 0:
		return fmt.Errorf("it is writable by its group%s", remedy)
	}
	return nil
}

// Parse reads the text of a job file, which messages call file. Mistakes come
// back as an [*Error].
func Parse(file string, text []byte) (*Job, error) {
	r := &reader{}
	j := &Job{OnFailure: Restore}
	if root, ok := r.document(text); ok {
		r.job(root, j)
	}
	if len(r.mistakes) > 0 {
		e := &Error{File: file, Mistakes: r.mistakes}
		e.sort()
		return nil, e
	}
	return j, nil
}

// document parses the text and returns its only document.
func (r *reader) document(text []byte) (root at, ok bool) {
	switch {
	case len(text) > maxFile:
		r.wrong(at{}, "the file is larger than %d bytes", maxFile)
		return at{}, false
	case slices.Contains(text, 0):
		r.wrong(at{}, "the file holds a zero byte: is it a job file?")
		return at{}, false
	case tooDeep(text):
		r.wrong(at{}, "brackets or lists nest deeper than %d", maxDepth)
		return at{}, false
	}
	// What the parser chokes on is a mistake in the file and must not take
	// the agent down.
	defer func() {
		if p := recover(); p != nil {
			r.wrong(at{}, "no valid YAML: %v", p)
			ok = false
		}
	}()
	doc, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		m := Mistake{Text: "no valid YAML: " + err.Error()}
		var ye yaml.Error
		if errors.As(err, &ye) {
			m.Text = "no valid YAML: " + ye.GetMessage()
			if t := ye.GetToken(); t != nil && t.Position != nil {
				m.Line, m.Column = t.Position.Line, t.Position.Column
			}
		}
		r.mistakes = append(r.mistakes, m)
		return at{}, false
	}
	var bodies []ast.Node
	for _, d := range doc.Docs {
		if d.Body != nil {
			bodies = append(bodies, d.Body)
		}
	}
	switch len(bodies) {
	case 0:
		r.wrong(at{}, "the file is empty")
		return at{}, false
	case 1:
		return at{node: bodies[0]}, true
	}
	r.wrong(at{node: bodies[1]}, "the file holds more than one document")
	return at{}, false
}

func tooDeep(text []byte) bool {
	depth := 0
	for _, c := range text {
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		}
		if depth > maxDepth {
			return true
		}
	}
	for line := range bytes.Lines(text) {
		marks := 0
		for field := range bytes.FieldsSeq(line) {
			if len(field) > 1 || field[0] != '-' && field[0] != '?' {
				break
			}
			if marks++; marks > maxDepth {
				return true
			}
		}
	}
	return false
}

func (r *reader) job(a at, j *Job) {
	// Names are looked up after all keys are read: steps may stand above
	// volumes.
	var volumes, steps at
	var saves map[int]bool
	r.mapping(a, []string{"name", "repository", "volumes", "steps"}, map[string]func(at){
		"name":       func(a at) { j.Name = r.name(a) },
		"repository": func(a at) { j.Repository = r.repository(a) },
		"passphrase_file": func(a at) {
			if j.PassphraseFile = r.path(a); j.PassphraseCommand != "" {
				r.wrong(a, "there is a passphrase_command already")
			}
		},
		"passphrase_command": func(a at) {
			if j.PassphraseCommand, _ = r.text(a); j.PassphraseFile != "" {
				r.wrong(a, "there is a passphrase_file already")
			}
		},
		"identity_files": func(a at) { j.IdentityFiles = r.paths(a) },
		"volumes":        func(a at) { volumes = a; j.Volumes = r.volumes(a) },
		"steps":          func(a at) { steps = a; j.Steps, saves = r.steps(a) },
		"on_failure": func(a at) {
			s, ok := r.text(a)
			j.OnFailure = OnFailure(s)
			if ok && j.OnFailure != Restore && j.OnFailure != Leave {
				r.wrong(a, "%q is not one of restore, leave", s)
			}
		},
		"keep_backups": func(a at) { j.KeepBackups = r.number(a, 0, 1_000_000) },
		"logs":         func(a at) { j.Logs = r.path(a) },
	})
	if volumes.node == nil || steps.node == nil {
		return
	}
	// A job in which nobody thought of save points is still guarded.
	if len(saves) == 0 && len(j.Steps) > 0 {
		j.Steps[0].SavePoint = true
	}
	r.crossCheck(steps, j)
}

// crossCheck looks at what volumes and steps say about each other.
func (r *reader) crossCheck(steps at, j *Job) {
	list, ok := steps.node.(*ast.SequenceNode)
	if !ok || len(list.Values) != len(j.Steps) {
		return
	}
	saved := false
	for i := range j.Steps {
		s := &j.Steps[i]
		here := at{list.Values[i], fmt.Sprintf("steps[%d]", i)}
		saved = saved || s.SavePoint
		if s.Retries > 0 && !saved {
			r.wrong(at{here.node, here.path + ".retries"}, "there is no save point to go back to: give this step or one above it save_point: true")
		}
		for _, name := range s.Recover {
			if !slices.Contains(j.VolumeNames(), name) {
				r.wrong(at{here.node, here.path + ".recover"}, "%q is not a volume of this job", name)
			}
		}
		if len(s.Recover) == 0 {
			s.Recover = j.VolumeNames()
		}
	}
}

func (r *reader) volumes(a at) []Volume {
	var list []Volume
	names, mounts, spares := map[string]int{}, map[string]int{}, map[string]int{}
	r.items(a, func(i int, item at) {
		var v Volume
		r.mapping(item, []string{"name"}, map[string]func(at){
			"name": func(a at) { v.Name, _ = r.text(a); r.once(a, names, v.Name, i) },
			"mount": func(a at) {
				if v.Mount = r.path(a); v.Mount == "/" {
					r.wrong(a, "the root directory can't be a mount point of a job")
				}
				r.once(a, mounts, v.Mount, i)
			},
			"fstype":  func(a at) { v.FSType = r.name(a) },
			"options": func(a at) { v.Options = r.options(a) },
			"spare":   func(a at) { v.Spare, _ = r.text(a); r.once(a, spares, v.Spare, i) },
		})
		if v.Mount == "" && (v.FSType != "" || v.Options != nil) {
			r.wrong(item, `"fstype" and "options" are of use with "mount" only`)
		}
		list = append(list, v)
	})
	for _, v := range list {
		if _, both := names[v.Spare]; both && v.Spare != "" {
			r.wrong(a, "volume %q is worked on and can't be a spare as well", v.Spare)
		}
	}
	return list
}

// options reads mount options: a list, or one text with commas as mount takes it.
func (r *reader) options(a at) []string {
	if _, isList := a.node.(*ast.SequenceNode); isList {
		list := r.texts(a)
		for _, o := range list {
			if strings.Contains(o, ",") {
				r.wrong(a, "%q: one option to an item", o)
			}
		}
		return list
	}
	s, ok := r.text(a)
	if !ok {
		return nil
	}
	var list []string
	for o := range strings.SplitSeq(s, ",") {
		if o = strings.TrimSpace(o); o != "" {
			list = append(list, o)
		}
	}
	return list
}

// steps also returns which of them say anything about a save point.
func (r *reader) steps(a at) ([]Step, map[int]bool) {
	var list []Step
	saves := map[int]bool{}
	names := map[string]int{}
	r.items(a, func(i int, item at) {
		var s Step
		r.mapping(item, []string{"name", "run"}, map[string]func(at){
			"name":    func(a at) { s.Name = r.name(a); r.once(a, names, s.Name, i) },
			"run":     func(a at) { s.Run = r.command(a) },
			"user":    func(a at) { s.User, _ = r.text(a) },
			"env":     func(a at) { s.Env = r.env(a) },
			"workdir": func(a at) { s.Workdir = r.path(a) },
			"timeout": func(a at) { s.Timeout = r.duration(a) },
			"save_point": func(a at) {
				saves[i] = true
				s.SavePoint, _ = r.boolean(a)
			},
			"retries": func(a at) { s.Retries = r.number(a, 0, maxRetries) },
			"recover": func(a at) {
				s.Recover = r.texts(a)
				if len(s.Recover) != len(slices.Compact(slices.Sorted(slices.Values(s.Recover)))) {
					r.wrong(a, "a volume is named twice")
				}
			},
		})
		list = append(list, s)
	})
	return list, saves
}

func (r *reader) command(a at) Command {
	if _, isList := a.node.(*ast.SequenceNode); isList {
		return Command{Argv: r.texts(a)}
	}
	s, _ := r.text(a)
	return Command{Shell: s}
}

func (r *reader) env(a at) map[string]string {
	env := map[string]string{}
	above := join(a.path, "")
	r.mapping(a, nil, map[string]func(at){anyKey: func(a at) {
		name := strings.TrimPrefix(a.path, above)
		switch {
		case !envForm.MatchString(name):
			r.wrong(a, "%q is no name of a variable", name)
		case strings.HasPrefix(name, "SWAPBACK_"):
			r.wrong(a, "variables that begin with SWAPBACK_ are set by the agent")
		}
		env[name], _ = r.scalar(a)
	}})
	return env
}

func (r *reader) name(a at) string {
	s, ok := r.text(a)
	if ok && !nameForm.MatchString(s) {
		r.wrong(a, "%q: want 1 to 64 letters, digits, '.', '_' and '-', and a letter or digit first", s)
	}
	return s
}

func (r *reader) path(a at) string {
	s, ok := r.text(a)
	if !ok {
		return ""
	}
	if !filepath.IsAbs(s) {
		r.wrong(a, "%q: want a path from the root (/…): a job may be started from anywhere", s)
		return ""
	}
	return filepath.Clean(s)
}

func (r *reader) paths(a at) []string {
	var list []string
	r.items(a, func(_ int, item at) {
		if s := r.path(item); s != "" {
			list = append(list, s)
		}
	})
	return list
}

func (r *reader) repository(a at) string {
	s, ok := r.text(a)
	if ok && !filepath.IsAbs(s) && !strings.HasPrefix(s, "file:///") {
		r.wrong(a, "%q: want a path from the root (/…) or file:///…", s)
	}
	return s
}

// once records a value and says so when another item has it already.
func (r *reader) once(a at, seen map[string]int, value string, i int) {
	if value == "" {
		return
	}
	if other, twice := seen[value]; twice {
		r.wrong(a, "%q stands in item %d already", value, other)
		return
	}
	seen[value] = i
}
