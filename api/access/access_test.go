package access

import (
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"

	"github.com/swapback/swapback/api/certs"
)

func parse(t *testing.T, text string) *Table {
	t.Helper()
	table, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestRights(t *testing.T) {
	table := parse(t, `# who may do what
swapback-access 1
allow host1 list,backup tank/db	tank/log-*   # two hosts
allow host1 swap *k/d*
allow host2 admin tank/*
allow host3 manage *
allow host4 metrics *
allow host5 list */db
`)
	for _, tt := range []struct {
		client string
		right  Right
		volume string
		want   bool
	}{
		{"host1", List, "tank/db", true}, {"host1", Backup, "tank/db", true}, {"host1", Swap, "tank/db", true},
		{"host1", Manage, "tank/db", false}, {"host1", Admin, "tank/db", false}, {"host1", Metrics, "tank/db", false},
		{"host1", Backup, "tank/log-1", true}, {"host1", Backup, "tank/log-", true}, {"host1", Backup, "tank/log", false},
		{"host1", List, "tank/log", false}, {"host1", Swap, "tank/log-1", false},
		{"host1", Swap, "bank/dx", true}, {"host1", Backup, "bank/dx", false}, {"host1", List, "bank/dx", true}, {"host1", Swap, "banks/dx", false},
		{"host2", Admin, "tank/any", true}, {"host2", Backup, "tank/any", true}, {"host2", Metrics, "tank/any", true}, {"host2", List, "tanks/any", false},
		{"host3", Manage, "any/any", true}, {"host3", List, "any/any", true}, {"host3", Backup, "any/any", false},
		{"host4", Metrics, "any/any", true}, {"host4", List, "any/any", false},
		{"host5", List, "safe/db", true}, {"host5", List, "safe/db2", false},
		{"*", List, "tank/db", false}, {"", List, "tank/db", false}, {"host", List, "tank/db", false}, {"host11", List, "tank/db", false}, {"HOST1", List, "tank/db", false},
	} {
		pool, name, _ := strings.Cut(tt.volume, "/")
		if got := table.May(tt.client, tt.right, pool, name); got != tt.want {
			t.Errorf("%s may %s %s: %v", tt.client, tt.right, tt.volume, got)
		}
	}
	is := func(what string, got, want bool) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
	is("host2 all of tank", table.MayPool("host2", Admin, "tank"), true)
	is("host2 all of tanks", table.MayPool("host2", Admin, "tanks"), false)
	is("host1 all of tank", table.MayPool("host1", Swap, "tank"), false)
	is("host5 all of safe", table.MayPool("host5", List, "safe"), false)
	is("host3 all of safe", table.MayPool("host3", Manage, "safe"), true)
	is("host3 everything", table.MayAll("host3", List), true)
	is("host2 everything", table.MayAll("host2", List), false)
	is("host4 everything", table.MayAll("host4", Metrics), true)
	is("host1 sees bank", table.SeesPool("host1", "bank"), true)
	is("host1 sees safe", table.SeesPool("host1", "safe"), false)
	is("host4 sees tank", table.SeesPool("host4", "tank"), false)
	is("host1 log-9 somewhere", table.MayBeNamed("host1", Backup, "log-9"), true)
	is("host1 swap log-9 somewhere", table.MayBeNamed("host1", Swap, "log-9"), false)
	is("host1 swaps", table.Has("host1", Swap), true)
	is("host1 manages", table.Has("host1", Manage), false)
	is("nobody lists", table.Has("nobody", List), false)
	if got := strings.Join(table.Clients(), " "); got != "host1 host2 host3 host4 host5" {
		t.Errorf("clients %s", got)
	}
}

func TestRevoked(t *testing.T) {
	cert := func(serial int64, raw, name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Raw: []byte(raw), URIs: []*url.URL{{Scheme: certs.Scheme, Opaque: name}}}
	}
	table := parse(t, fmt.Sprintf("swapback-access 1\nrevoke name host2\nrevoke serial 00ABC\nrevoke sha256 %s\nallow host2 admin *\n",
		strings.ToUpper(certs.Fingerprint(cert(1, "lost", "host1")))))
	for _, tt := range []struct {
		cert *x509.Certificate
		want string
	}{
		{cert(1, "good", "host1"), ""},
		{cert(1, "good", "host2"), "revoke name host2"},
		{cert(0xabc, "good", "host1"), "revoke serial abc"},
		{cert(0xab, "good", "host1"), ""},
		{cert(1, "lost", "host1"), "revoke sha256"},
		{&x509.Certificate{SerialNumber: big.NewInt(0xabc)}, "revoke serial abc"},
	} {
		if got := table.Revoked(tt.cert); !strings.HasPrefix(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	if !table.NameRevoked("host2") || table.NameRevoked("host1") {
		t.Error("NameRevoked")
	}
}

// TestMistakes: whatever is not understood is refused, with its line.
func TestMistakes(t *testing.T) {
	const head = "swapback-access 1\n"
	for text, want := range map[string]string{
		"":                                                            "line 1: the file is empty",
		"# nothing\n\n":                                               "line 2: the file is empty",
		"allow host1 list *\n":                                        "line 1: the file begins with",
		"swapback-access 2\n":                                         "line 1: the file begins with",
		"swapback-access 1 x\n":                                       "line 1: the file begins with",
		head + "\nalow host1 list *":                                  `line 3: unknown word "alow"`,
		head + "Allow host1 list *":                                   "unknown word",
		head + "deny host1 list *":                                    "unknown word",
		head + "allow host1 list":                                     "want: allow",
		head + "allow host1":                                          "want: allow",
		head + "allow host1 lst tank/db":                              `unknown right "lst"`,
		head + "allow host1 list, tank/db":                            `unknown right ""`,
		head + "allow host1 list ,swap *":                             "want POOL/NAME",
		head + "allow host1 List tank/db":                             "unknown right",
		head + "allow * list tank/db":                                 "client name",
		head + "allow host/1 list tank/db":                            "client name",
		head + "allow -host list tank/db":                             "client name",
		head + "allow host1 list db":                                  "want POOL/NAME",
		head + "allow host1 list tank/":                               "want POOL/NAME",
		head + "allow host1 list /db":                                 "want POOL/NAME",
		head + "allow host1 list a/b/c":                               "want POOL/NAME",
		head + "allow host1 list **":                                  "want POOL/NAME",
		head + "allow host1 list tank/d?":                             "want POOL/NAME",
		head + "allow host1 list tank/[a-z]":                          "want POOL/NAME",
		head + `allow host1 list tank/a\b`:                            "want POOL/NAME",
		head + "allow host1 list tank/dä":                             "want POOL/NAME",
		head + "allow host1 metrics tank/db":                          "goes with *",
		head + "allow host1 list,metrics */*":                         "goes with *",
		head + "allow host1 list tank/db;x":                           "want POOL/NAME",
		head + "allow host1 list tank/\x00":                           "control character",
		head + "allow host1 list tank/db\r\n":                         "control character",
		head + "allow host1 list\u00a0*":                              "want: allow",
		head + "allow host1\u202e list *":                             "control character",
		head + "allow host1 list \xff":                                "UTF-8",
		head + "host host1":                                           "want: host",
		head + "host * nqn.2014-08.org.nvmexpress:uuid:a":             "client name",
		head + "host host1 a":                                         "want its NQN",
		head + "host host1 nqn.2014-08.org.x*":                        "want its NQN",
		head + "host host1 nqn.2014-8.org.x":                          "want its NQN",
		head + "host host1 nqn.2014-08.org.x,nqn.2014-08.org.y":       "want its NQN",
		head + "host host1 nqn.2014-08." + strings.Repeat("a", 220):   "want its NQN",
		head + "revoke host1":                                         "want: revoke",
		head + "revoke name host1 host2":                              "want: revoke",
		head + "revoke host host1":                                    "unknown word",
		head + "revoke name *":                                        "client name",
		head + "revoke serial":                                        "want: revoke",
		head + "revoke serial 0x12":                                   "serial number",
		head + "revoke serial 0":                                      "serial number",
		head + "revoke serial 12:34":                                  "serial number",
		head + "revoke serial " + strings.Repeat("1", 41):             "serial number",
		head + "revoke sha256 1234":                                   "fingerprint",
		head + "allow host1 list " + strings.Repeat("a", 5000) + "/b": "line 2: more than 4096 bytes",
		head + strings.Repeat("revoke name a\n", maxStatements):       "statements",
		head + strings.Repeat("#\n", maxText/2):                       "more than 1048576 bytes",
	} {
		_, err := Parse([]byte(text))
		var m *Mistake
		if !errors.As(err, &m) || m.Line < 1 || !strings.Contains(err.Error(), want) || len(err.Error()) > 400 {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
}

// TestHosts: a client speaks for the hosts that are named, and has no right by that.
func TestHosts(t *testing.T) {
	const a, b = "nqn.2014-08.org.nvmexpress:uuid:1b4e28ba-2fa1-11d2-883f-0016d3cca427", "nqn.2020-01.org.example:b"
	table := parse(t, Header+"\nhost host1 "+a+" "+b+"\nhost host1 "+a+" # twice\nhost host2 "+b+"\n")
	for _, tt := range []struct {
		client, nqn string
		want        bool
	}{
		{"host1", a, true}, {"host1", b, true}, {"host2", b, true}, {"host2", a, false}, {"host3", b, false}, {"", b, false},
		{"host1", strings.ToUpper(a), false}, {"host1", a[:len(a)-1], false}, {"host1", "", false}, {"host1", "*", false},
	} {
		if got := table.SpeaksFor(tt.client, tt.nqn); got != tt.want {
			t.Errorf("%s speaks for %s: %v", tt.client, tt.nqn, got)
		}
	}
	if got := table.Hosts("host1"); len(got) != 2 || got[0] != a || got[1] != b {
		t.Errorf("host1 speaks for %q", got)
	}
	if got := table.Hosts("nobody"); got == nil || len(got) != 0 {
		t.Errorf("nobody speaks for %#v", got)
	}
	if table.Has("host1", List) || len(table.Clients()) != 0 {
		t.Error("who speaks for a host has a right")
	}
	text, err := Add([]byte(Header), Host("host1", []string{a, b}), "")
	if err != nil || !parse(t, string(text)).SpeaksFor("host1", b) {
		t.Errorf("%q, %v", text, err)
	}
}

func TestAdd(t *testing.T) {
	text, err := Add([]byte(Header), Allow("host1", []Right{List, Swap}, []string{"tank/db", "tank/x*"}), "why")
	if err != nil || string(text) != "swapback-access 1\nallow host1 list,swap tank/db tank/x*  # why\n" {
		t.Errorf("%q, %v", text, err)
	}
	for _, bad := range []string{"allow host1 list", "allow host1 list db", "revoke serial x\nallow host1 admin *"} {
		if after, err := Add(text, bad, ""); err == nil {
			t.Errorf("%q was added: %s", bad, after)
		}
	}
	if _, err := Add([]byte("nonsense"), "revoke name host1", ""); err == nil {
		t.Error("a file that can't be read was added to")
	}
}

// FuzzParse: a file is taken or refused with the line of its mistake; what is taken
// allows nobody anything that no line says, and a line that is added is read back.
func FuzzParse(f *testing.F) {
	f.Add([]byte("swapback-access 1\nallow host1 list,backup tank/db tank/*\nrevoke name host2\n"))
	f.Add([]byte("swapback-access 1\nallow a list *\nhost a nqn.2014-08.org.nvmexpress:uuid:x nqn.2020-01.org.example:b\n"))
	f.Add([]byte("# x\nswapback-access 1 # y\n\trevoke serial 0aF\nallow a admin *\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		table, err := Parse(text)
		if err != nil {
			var m *Mistake
			if !errors.As(err, &m) || m.Line < 1 || m.Line > strings.Count(string(text), "\n")+1 || len(err.Error()) > 1000 {
				t.Fatalf("got %v", err)
			}
			return
		}
		if table.Has("nobody-of-these", List) && !strings.Contains(string(text), "nobody-of-these") {
			t.Error("somebody else has a right")
		}
		for client, hosts := range table.hosts {
			for _, nqn := range hosts {
				if !strings.Contains(string(text), nqn) || CheckHost(nqn) != nil || !table.SpeaksFor(client, nqn) || table.SpeaksFor(client+"x", nqn) && !strings.Contains(string(text), client+"x") {
					t.Errorf("%q speaks for %q", client, nqn)
				}
			}
		}
		for _, c := range table.Clients() {
			if !strings.Contains(string(text), c) {
				t.Errorf("client %q is not in the file", c)
			}
			for _, r := range Rights {
				all, pool := table.MayAll(c, r), table.MayPool(c, r, "tank")
				if all && !pool || pool && !table.May(c, r, "tank", "db") || table.May(c, r, "tank", "db") && !table.Has(c, r) {
					t.Errorf("%s %s: more is less", c, r)
				}
				if table.May(c, r, "tank", "db") && !table.MayBeNamed(c, r, "db") {
					t.Errorf("%s %s: a volume that may not be called so", c, r)
				}
			}
		}
		after, err := Add(text, Allow("added", []Right{Swap}, []string{"tank/db"}), "by a test")
		if err != nil {
			if len(text) > maxText-200 || strings.Count(string(text), "\n") >= maxStatements-1 {
				return
			}
			t.Fatal(err)
		}
		again, err := Parse(after)
		if err != nil || !again.May("added", Swap, "tank", "db") {
			t.Errorf("the line that was added is not there: %v", err)
		}
	})
}
