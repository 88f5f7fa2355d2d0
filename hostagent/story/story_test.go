package story

import (
	"bufio"
	"bytes"
	"encoding/json"
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
