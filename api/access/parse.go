package access

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/swapback/swapback/api/certs"
)

// Header is the first statement of a file.
const Header = "swapback-access 1"

const (
	maxText       = 1 << 20 // bytes of a file
	maxLine       = 4096    // bytes of a line
	maxStatements = 10000
	maxPattern    = 129 // POOL/NAME
	maxHost       = 223
)

// Mistake is why a file is refused.
type Mistake struct {
	Line    int // from 1 on
	Problem string
}

func (m *Mistake) Error() string { return fmt.Sprintf("line %d: %s", m.Line, m.Problem) }

// Parse reads the text of a file. What it does not know it refuses with a
// [*Mistake]: a right that is misspelt, or a revocation, must not be passed over.
func Parse(text []byte) (*Table, error) {
	t := &Table{grants: map[string][]grant{}, hosts: map[string][]string{}, names: map[string]bool{}, serials: map[string]bool{}, prints: map[string]bool{}}
	if len(text) > maxText {
		return nil, &Mistake{1, fmt.Sprintf("the file has more than %d bytes", maxText)}
	}
	statements := 0
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSuffix(line, "\n")
		words, err := split(line)
		if err != nil {
			return nil, &Mistake{n, err.Error()}
		}
		if len(words) == 0 {
			continue
		}
		statements++
		switch {
		case statements == 1:
			if strings.Join(words, " ") != Header {
				return nil, &Mistake{n, fmt.Sprintf("the file begins with %.40q, want %q", strings.Join(words, " "), Header)}
			}
			continue
		case statements > maxStatements:
			return nil, &Mistake{n, fmt.Sprintf("more than %d statements", maxStatements)}
		}
		if err := t.add(words); err != nil {
			return nil, &Mistake{n, err.Error()}
		}
	}
	if statements == 0 {
		return nil, &Mistake{max(n, 1), fmt.Sprintf("the file is empty, want %q", Header)}
	}
	return t, nil
}

// split returns the words of a line.
func split(line string) ([]string, error) {
	if len(line) > maxLine {
		return nil, fmt.Errorf("more than %d bytes", maxLine)
	}
	if !utf8.ValidString(line) {
		return nil, fmt.Errorf("is not UTF-8")
	}
	// What looks like one thing to a person must not be another.
	if strings.ContainsFunc(line, func(r rune) bool { return r != '\t' && unicode.Is(unicode.C, r) }) {
		return nil, fmt.Errorf("has a control character, or one that is not seen")
	}
	line, _, _ = strings.Cut(line, "#")
	return strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' }), nil
}

func (t *Table) add(words []string) error {
	switch words[0] {
	case "allow":
		return t.allow(words[1:])
	case "host":
		return t.host(words[1:])
	case "revoke":
		return t.revoke(words[1:])
	}
	return fmt.Errorf("unknown word %.40q, want allow, host or revoke", words[0])
}

func (t *Table) host(words []string) error {
	if len(words) < 2 {
		return fmt.Errorf("want: host CLIENT NQN…")
	}
	client := words[0]
	if err := certs.CheckName(client); err != nil {
		return err
	}
	for _, nqn := range words[1:] {
		if err := CheckHost(nqn); err != nil {
			return err
		}
		if !slices.Contains(t.hosts[client], nqn) {
			t.hosts[client] = append(t.hosts[client], nqn)
		}
	}
	return nil
}

// hostForm is that of an NVMe qualified name (NVM Express Base 4.5), in characters that
// neither this file nor a shell takes for anything else.
var hostForm = regexp.MustCompile(`^nqn\.[0-9]{4}-[0-9]{2}\.[A-Za-z0-9._:+/@-]+$`)

// CheckHost tells whether text can be the name of a host.
func CheckHost(text string) error {
	if len(text) > maxHost || !hostForm.MatchString(text) {
		return fmt.Errorf("host %.240q: want its NQN, as in its /etc/nvme/hostnqn", text)
	}
	return nil
}

func (t *Table) allow(words []string) error {
	if len(words) < 3 {
		return fmt.Errorf("want: allow CLIENT RIGHT[,RIGHT…] VOLUME…")
	}
	client := words[0]
	if err := certs.CheckName(client); err != nil {
		return err
	}
	rights, err := ParseRights(words[1])
	if err != nil {
		return err
	}
	for _, v := range words[2:] {
		if err := CheckPattern(v); err != nil {
			return err
		}
		if slices.Contains(rights, Metrics) && v != "*" {
			return fmt.Errorf("the right %s is to the counters of all volumes: it goes with *, not with %s", Metrics, v)
		}
	}
	t.grants[client] = append(t.grants[client], grant{rights, words[2:]})
	return nil
}

// ParseRights reads rights with commas between them.
func ParseRights(text string) ([]Right, error) {
	var rights []Right
	for word := range strings.SplitSeq(text, ",") {
		if !slices.Contains(Rights, Right(word)) {
			return nil, fmt.Errorf("unknown right %.40q, want some of %s with commas between them", word, Words(Rights))
		}
		rights = append(rights, Right(word))
	}
	return rights, nil
}

// Words joins rights as [ParseRights] reads them.
func Words(rights []Right) string {
	words := make([]string, len(rights))
	for i, r := range rights {
		words[i] = string(r)
	}
	return strings.Join(words, ",")
}

// CheckPattern tells whether text can stand for volumes.
func CheckPattern(text string) error {
	if text == "*" {
		return nil
	}
	odd := func(r rune) bool {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		return !letter && !strings.ContainsRune("._-*/", r)
	}
	pool, name, ok := strings.Cut(text, "/")
	_, err := path.Match(text, "")
	if !ok || pool == "" || name == "" || strings.Contains(name, "/") || len(text) > maxPattern || strings.ContainsFunc(text, odd) || err != nil {
		return fmt.Errorf("volume %.140q: want POOL/NAME, in which * stands for any run of characters, or * for all", text)
	}
	return nil
}

func (t *Table) revoke(words []string) error {
	if len(words) != 2 {
		return fmt.Errorf("want: revoke name CLIENT, revoke serial HEX or revoke sha256 HEX")
	}
	switch kind, what := words[0], words[1]; kind {
	case "name":
		if err := certs.CheckName(what); err != nil {
			return err
		}
		t.names[what] = true
	case "serial":
		s, ok := hexDigits(what, 1, 40)
		if s = strings.TrimLeft(s, "0"); !ok || s == "" {
			return fmt.Errorf("serial number %.60q: want at most 40 hexadecimal digits, not all of them 0", what)
		}
		t.serials[s] = true
	case "sha256":
		s, ok := hexDigits(what, 64, 64)
		if !ok {
			return fmt.Errorf("fingerprint %.80q: want the 64 hexadecimal digits of a certificate's SHA-256", what)
		}
		t.prints[s] = true
	default:
		return fmt.Errorf("unknown word %.40q, want name, serial or sha256", kind)
	}
	return nil
}

// hexDigits returns digits in lower case.
func hexDigits(s string, low, high int) (string, bool) {
	s = strings.ToLower(s)
	odd := strings.ContainsFunc(s, func(r rune) bool { return !('0' <= r && r <= '9' || 'a' <= r && r <= 'f') })
	return s, !odd && len(s) >= low && len(s) <= high
}

// Allow is the statement that gives a client rights.
func Allow(client string, rights []Right, volumes []string) string {
	return "allow " + client + " " + Words(rights) + " " + strings.Join(volumes, " ")
}

// Host is the statement that has a client speak for hosts.
func Host(client string, hosts []string) string {
	return "host " + client + " " + strings.Join(hosts, " ")
}

// Add returns the text of a file with one more statement. It refuses a text that
// can't be read, before or after.
func Add(text []byte, statement, comment string) ([]byte, error) {
	if _, err := Parse(text); err != nil {
		return nil, err
	}
	b := strings.Builder{}
	b.Write(text)
	if n := len(text); n > 0 && text[n-1] != '\n' {
		b.WriteByte('\n')
	}
	b.WriteString(statement)
	if comment != "" {
		b.WriteString("  # " + comment)
	}
	b.WriteByte('\n')
	after := []byte(b.String())
	_, err := Parse(after)
	return after, err
}
