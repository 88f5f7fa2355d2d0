package keyslot

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"filippo.io/age"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/seal"
)

var (
	master = seal.Key{1, 2, 3}
	conf   = Config(`{"id":"x","encryption":"aes-256-gcm"}`)
)

// cheap makes passphrases quick to try.
func cheap(t testing.TB) {
	t.Helper()
	saved := argon
	argon.Time, argon.Memory, argon.Threads = 1, 8<<10, 1
	t.Cleanup(func() { argon = saved })
}

// decoded is the slot as it comes back from an object.
func decoded(t testing.TB, s Slot) *Slot {
	t.Helper()
	p, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	s = Slot{}
	if err := json.Unmarshal(p, &s); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	return &s
}

func TestPassphrase(t *testing.T) {
	cheap(t)
	s := Slot{ID: "a"}
	if err := s.ForPassphrase([]byte("open sesame"), master, conf); err != nil {
		t.Fatal(err)
	}
	got := decoded(t, s)
	if k, err := got.OpenPassphrase([]byte("open sesame"), conf); err != nil || k != master {
		t.Errorf("opened: %v, %v", k, err)
	}
	if _, err := got.OpenPassphrase([]byte("open sesam"), conf); !errors.Is(err, ErrNoMatch) {
		t.Errorf("another passphrase: %v", err)
	}
	if _, err := got.OpenPassphrase([]byte("open sesame"), Config(`{"id":"x","encryption":"none"}`)); !errors.Is(err, ErrConfig) {
		t.Errorf("another config: %v", err)
	}
	other := *got
	other.ID = "b"
	if _, err := other.OpenPassphrase([]byte("open sesame"), conf); !errors.Is(err, ErrNoMatch) {
		t.Errorf("under another ID: %v", err)
	}
	for i := range got.Box {
		bad := *got
		bad.Box = bytes.Clone(got.Box)
		bad.Box[i] ^= 1
		if i%7 != 0 {
			continue
		}
		if _, err := bad.OpenPassphrase([]byte("open sesame"), conf); !errors.Is(err, ErrNoMatch) {
			t.Errorf("changed byte %d: %v", i, err)
		}
	}
}

func TestRecipient(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	s := Slot{ID: "a"}
	if err := s.ForRecipient(id.Recipient().String(), master, conf); err != nil {
		t.Fatal(err)
	}
	got := decoded(t, s)
	if k, err := got.OpenIdentities([]age.Identity{other, id}, conf); err != nil || k != master {
		t.Errorf("opened: %v, %v", k, err)
	}
	if _, err := got.OpenIdentities([]age.Identity{other}, conf); !errors.Is(err, ErrNoMatch) {
		t.Errorf("another identity: %v", err)
	}
	if _, err := got.OpenIdentities([]age.Identity{id}, Config(`{}`)); !errors.Is(err, ErrConfig) {
		t.Errorf("another config: %v", err)
	}
	got.Box = got.Box[:len(got.Box)-1]
	if _, err := got.OpenIdentities([]age.Identity{id}, conf); !errors.Is(err, format.ErrCorrupt) {
		t.Errorf("cut short: %v", err)
	}
	for _, bad := range []string{"", "age1", id.String(), id.Recipient().String() + "\n" + other.Recipient().String()} {
		if err := new(Slot).ForRecipient(bad, master, conf); err == nil {
			t.Errorf("recipient %q is taken", bad)
		}
	}
}

// What a slot asks for is bounded.
func TestCheck(t *testing.T) {
	cheap(t)
	var good Slot
	if err := good.ForPassphrase([]byte("x"), master, conf); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(s *Slot, a *Argon2){
		"no parameters":   func(s *Slot, a *Argon2) { s.Argon2 = nil },
		"no time":         func(s *Slot, a *Argon2) { a.Time = 0 },
		"much time":       func(s *Slot, a *Argon2) { a.Time = maxTime + 1 },
		"much memory":     func(s *Slot, a *Argon2) { a.Memory = maxMemory + 1 },
		"little memory":   func(s *Slot, a *Argon2) { a.Memory = 1 },
		"no threads":      func(s *Slot, a *Argon2) { a.Threads = 0 },
		"a short salt":    func(s *Slot, a *Argon2) { a.Salt = a.Salt[:8] },
		"a long salt":     func(s *Slot, a *Argon2) { a.Salt = make([]byte, 65) },
		"a large box":     func(s *Slot, a *Argon2) { s.Box = make([]byte, maxBox+1) },
		"a long label":    func(s *Slot, a *Argon2) { s.Label = string(make([]byte, maxLabel+1)) },
		"an unknown kind": func(s *Slot, a *Argon2) { s.Kind = "pkcs11" },
	} {
		s, a := good, *good.Argon2
		s.Argon2 = &a
		change(&s, &a)
		if err := s.Check(); !errors.Is(err, format.ErrCorrupt) && !errors.Is(err, format.ErrVersion) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzSlot opens whatever a repository may have for a key.
func FuzzSlot(f *testing.F) {
	cheap(f)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	var a, b Slot
	if err := errors.Join(a.ForPassphrase([]byte("x"), master, conf), b.ForRecipient(id.Recipient().String(), master, conf)); err != nil {
		f.Fatal(err)
	}
	for _, s := range []Slot{a, b} {
		p, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var s Slot
		if json.Unmarshal(p, &s) != nil || s.Check() != nil {
			return
		}
		if s.Kind == Passphrase && s.Argon2.Memory <= 16<<10 && s.Argon2.Time < 3 { // else it takes long
			if k, err := s.OpenPassphrase([]byte("x"), conf); err == nil && k != master {
				t.Errorf("another key")
			}
		}
		_, _ = s.OpenIdentities([]age.Identity{id}, conf)
	})
}
