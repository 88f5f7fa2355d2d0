package story

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clock goes on by a second with every look.
func clock() func() time.Time {
	t := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return func() time.Time {
		defer func() { t = t.Add(time.Second) }()
		return t
	}
}

func TestStory(t *testing.T) {
	dir := t.TempDir()
	var terminal bytes.Buffer
	s, err := Open(Options{Dir: dir, Job: "nightly", Terminal: &terminal, Now: clock()})
	if err != nil {
		t.Fatal(err)
	}
	code := 3
	s.Tell(Event{Event: StepStarted, Step: "one", Attempt: 1, Text: "step 1/1 one"})
	out := s.Output()
	for _, part := range []string{"hel", "lo\nwor", "ld \x1b[31mred\x1b[0m\n", "10%\r20%\r30%\r\nlast"} {
		if n, err := out.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	out.Close()
	s.Tell(Event{Event: StepFailed, Step: "one", ExitCode: &code, Text: "step 1/1 one failed\nsecond line", Data: map[string]int{"a": 1}})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want := `     1.0s  step 1/1 one
           | hello
           | world ·[31mred·[0m
           | 30%
           | last
     2.0s  step 1/1 one failed
     2.0s    second line
`
	log, err := os.ReadFile(filepath.Join(dir, "nightly", "20260301T120000Z.log"))
	if err != nil {
		t.Fatal(err)
	}
	if string(log) != want || terminal.String() != want {
		t.Errorf("log:\n%s\nterminal:\n%s\nwant:\n%s", log, &terminal, want)
	}
	if got := strings.Join(out.Tail(), "|"); got != "hello|world ·[31mred·[0m|30%|last" {
		t.Errorf("tail %q", got)
	}
	f, err := os.Open(s.EventsPath())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var events []Event
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var e Event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	if len(events) != 2 || events[1].Job != "nightly" || *events[1].ExitCode != 3 || events[1].Elapsed != 2 {
		t.Errorf("%+v", events)
	}
}

// TestHostileText: what others named does not reach the terminal as they wrote
// it, in a line of ours either.
func TestHostileText(t *testing.T) {
	var terminal bytes.Buffer
	s, err := Open(Options{Dir: t.TempDir(), Job: "nightly", Terminal: &terminal, Now: clock()})
	if err != nil {
		t.Fatal(err)
	}
	s.Tell(Event{Event: Warning, Text: "held by a\x1b]0;b\x07\rc\n\u202ed"})
	out := s.Output()
	_, _ = out.Write([]byte("e\u202ef\n"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if want := "     1.0s  held by a·]0;b··c\n     1.0s    ·d\n           | e·f\n"; terminal.String() != want {
		t.Errorf("got %q, want %q", &terminal, want)
	}
}

// TestLinksInAFolderOfEverybody: a folder such as /tmp holds what others put
// there, under names that can be guessed. Nothing is written through it.
func TestLinksInAFolderOfEverybody(t *testing.T) {
	put := map[string]func(dir, target string) error{
		"a link for the log":        func(dir, target string) error { return link(target, dir, "nightly", "20260301T120000Z.log") },
		"a link for the events":     func(dir, target string) error { return link(target, dir, "nightly", "20260301T120000Z.jsonl") },
		"a link for the job's logs": func(dir, target string) error { return os.Symlink(filepath.Dir(target), filepath.Join(dir, "nightly")) },
	}
	for what, plant := range put {
		dir, target := t.TempDir(), filepath.Join(t.TempDir(), "precious")
		if err := os.WriteFile(target, []byte("value"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := plant(dir, target); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Dir: dir, Job: "nightly", Now: clock()})
		if err == nil {
			s.Tell(Event{Event: Note, Text: "hello"})
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		if text, err := os.ReadFile(target); err != nil || string(text) != "value" {
			t.Errorf("%s: the file that it leads to holds %q, %v", what, text, err)
		}
		if list, err := os.ReadDir(filepath.Dir(target)); err != nil || len(list) != 1 {
			t.Errorf("%s: files were made where it leads to: %v, %v", what, list, err)
		}
	}
}

func link(target string, path ...string) error {
	name := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
		return err
	}
	return os.Symlink(target, name)
}

// TestFolderOfSomebodyElse: logs are not put where others can change them.
func TestFolderOfSomebodyElse(t *testing.T) {
	for what, spoil := range map[string]func(dir string) error{
		"the folder for all jobs": func(dir string) error { return os.Chmod(dir, 0o777) },
		"the job's folder": func(dir string) error {
			sub := filepath.Join(dir, "nightly")
			return errors.Join(os.Mkdir(sub, 0o700), os.Chmod(sub, 0o777))
		},
		"the job's folder, of another user": func(dir string) error {
			sub := filepath.Join(dir, "nightly")
			if os.Geteuid() != 0 {
				return errors.Join(os.Mkdir(sub, 0o700), os.Chmod(sub, 0o777))
			}
			return errors.Join(os.Mkdir(sub, 0o700), os.Chown(sub, 65534, 65534))
		},
	} {
		dir := t.TempDir()
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(Options{Dir: dir, Job: "nightly", Now: clock()}); err == nil {
			s.Close()
			t.Errorf("%s can be changed by others, and is used", what)
		}
	}
	sticky := t.TempDir()
	if err := os.Chmod(sticky, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: sticky, Job: "nightly", Now: clock()})
	if err != nil {
		t.Fatalf("a folder such as /tmp: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestTwoRunsWithinASecond(t *testing.T) {
	dir := t.TempDir()
	fixed := func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }
	var paths []string
	for range 3 {
		s, err := Open(Options{Dir: dir, Job: "j", Now: fixed})
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, s.LogPath())
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if paths[0] == paths[1] || paths[1] == paths[2] {
		t.Errorf("%q", paths)
	}
}

func TestLongLineIsBroken(t *testing.T) {
	var terminal bytes.Buffer
	s, err := Open(Options{Dir: t.TempDir(), Job: "j", Terminal: &terminal})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out := s.Output()
	for range 100 {
		if _, err := out.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if len(out.held) > maxLine+1000 || !strings.Contains(terminal.String(), "\n") {
		t.Errorf("%d bytes are held back", len(out.held))
	}
}

func TestLogThatCannotBeWritten(t *testing.T) {
	s, err := Open(Options{Dir: t.TempDir(), Job: "j"})
	if err != nil {
		t.Fatal(err)
	}
	s.human.Close()
	s.Tell(Event{Event: Note, Text: "lost"})
	if err := s.Close(); err == nil {
		t.Error("the lost line went unnoticed")
	}
	if _, err := Open(Options{Dir: "/proc/no", Job: "j"}); err == nil {
		t.Error("a folder that can't be made was accepted")
	}
}
