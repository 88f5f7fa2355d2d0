package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/store/storetest"
)

// secretFile makes a file that only we may read.
func secretFile(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKeys(t *testing.T) {
	ctx, m := t.Context(), storetest.NewMem()
	first := Secret{PassphraseFile: secretFile(t, "open sesame\nignored\n")}
	r, err := initStore(ctx, m, InitOptions{ChunkSize: testChunk, Secret: first})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Encrypted() {
		t.Fatal("the repository is not encrypted")
	}
	content := image(3, 9)
	b := create(t, r, CreateOptions{}, source(t, "db", content))

	opens := func(what string, s Secret) {
		t.Helper()
		r, err := openStore(ctx, m, s)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		target := dirty(t, len(content))
		restore(t, r, RestoreOptions{Backup: b.ID, Target: target})
		wantContent(t, what, target, content)
	}
	refused := func(what string, s Secret, want error, text string) {
		t.Helper()
		_, err := openStore(ctx, m, s)
		wantErr(t, what, err, want, text)
	}
	opens("passphrase file", first)
	opens("passphrase command", Secret{PassphraseCommand: "echo 'open sesame'"})
	opens("a person", Secret{Ask: func(context.Context) ([]byte, error) { return []byte("open sesame"), nil }})
	refused("no secret", Secret{}, ErrSecret, "give a passphrase file")
	refused("another passphrase", Secret{PassphraseFile: secretFile(t, "open sesam")}, ErrLocked, "")
	refused("an identity without a key", Secret{IdentityFiles: []string{identity}}, ErrLocked, "")

	age, err := r.AddKey(ctx, KeyOptions{Recipient: recipient, Label: "the safe"})
	if err != nil {
		t.Fatal(err)
	}
	second, err := r.AddKey(ctx, KeyOptions{Secret: Secret{PassphraseFile: secretFile(t, "second")}})
	if err != nil {
		t.Fatal(err)
	}
	opens("identity", Secret{IdentityFiles: []string{identity}})
	opens("second passphrase", Secret{PassphraseFile: secretFile(t, "second")})
	list, err := r.Keys(ctx)
	if err != nil || len(list) != 3 || list[1] != age || list[2] != second || age.Kind != "age" || age.Label != "the safe" || second.Kind != "passphrase" {
		t.Errorf("keys are %+v, %v", list, err)
	}

	if err := r.RemoveKey(ctx, list[0].ID); err != nil {
		t.Fatal(err)
	}
	refused("a removed key's passphrase", first, ErrLocked, "")
	opens("second passphrase", Secret{PassphraseFile: secretFile(t, "second")})
	if err := r.RemoveKey(ctx, age.ID); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "remove the last key", r.RemoveKey(ctx, second.ID), ErrInvalid, "last key")
	wantErr(t, "remove no key", r.RemoveKey(ctx, "ffff"), ErrNotFound, "key list")
	wantErr(t, "remove any key", r.RemoveKey(ctx, ""), ErrNotFound, "key list")
	opens("second passphrase", Secret{PassphraseFile: secretFile(t, "second")})
	_, err = r.AddKey(ctx, KeyOptions{Recipient: "age1nobody"})
	wantErr(t, "no recipient", err, ErrInvalid, "age-keygen")
	_, err = r.AddKey(ctx, KeyOptions{})
	wantErr(t, "nothing to add", err, ErrInvalid, "neither")
}

// What a secret is taken from is told, what it is never.
func TestSecrets(t *testing.T) {
	m := storetest.NewMem()
	if _, err := initStore(t.Context(), m, InitOptions{ChunkSize: testChunk, Secret: Secret{PassphraseFile: secretFile(t, "pw-123")}}); err != nil {
		t.Fatal(err)
	}
	public := secretFile(t, "pw-123")
	if err := os.Chmod(public, 0o640); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		secret Secret
		text   string
	}{
		"others may read it": {Secret{PassphraseFile: public}, "chmod 600 " + public},
		"no file":            {Secret{PassphraseFile: "/nowhere/pw-1"}, "/nowhere/pw-1"},
		"empty line":         {Secret{PassphraseFile: secretFile(t, "\npw-123")}, "first line is empty"},
		"large":              {Secret{PassphraseFile: secretFile(t, strings.Repeat("pw-123", 20000))}, "too large"},
		"failed command":     {Secret{PassphraseCommand: "echo pw-123; exit 3"}, "exit status 3"},
		"no identity":        {Secret{IdentityFiles: []string{secretFile(t, "pw-123")}}, "AGE-SECRET-KEY-1"},
	} {
		_, err := openStore(t.Context(), m, c.secret)
		wantErr(t, what, err, ErrSecret, c.text)
		if err != nil && strings.Contains(err.Error(), "pw-123") {
			t.Errorf("%s: the secret shows in %v", what, err)
		}
	}
	_, err := openStore(t.Context(), m, Secret{PassphraseFile: public, PassphraseCommand: "true"})
	wantErr(t, "file and command", err, ErrInvalid, "one of them")
}

// Nobody who has the repository and no key sees what is in it, what it is called,
// or that two volumes are alike another's.
func TestNothingShows(t *testing.T) {
	r, m := memRepo(t)
	content := bytes.Repeat([]byte("the accounts of everybody\n"), testChunk/4)
	o := CreateOptions{Comment: "a secret comment", Tags: []string{"secret-tag"}, Job: "secret-job", Step: "secret-step"}
	s := source(t, "secret-name", content)
	create(t, r, o, s)
	for _, name := range m.Names("") {
		for _, secret := range []string{"accounts", "secret", "uuid-", "pos-"} {
			if bytes.Contains(m.Object(name), []byte(secret)) {
				t.Errorf("%s shows %q", name, secret)
			}
		}
	}
	other, n := memRepo(t)
	create(t, other, o, s)
	if r.hash(content) == other.hash(content) {
		t.Error("two repositories give a chunk one name")
	}
	_ = n
}

// Who can write to the repository, but has no key, can do damage and nothing else.
func TestForgeries(t *testing.T) {
	ctx := t.Context()
	r, m := memRepo(t)
	a := create(t, r, CreateOptions{}, source(t, "db", image(1, 4)))
	b := create(t, r, CreateOptions{}, source(t, "db", image(2, 4)))
	name := func(b Backup) string { return backupDir + "/" + b.ID }

	// One backup as another.
	forged := m.Clone()
	forged.SetObject(name(a), m.Object(name(b)))
	f := view(t, forged, 2)
	_, err := f.Get(ctx, a.ID)
	wantErr(t, "a renamed backup", err, ErrDamaged, "")

	// A manifest that says that nothing is encrypted.
	open, err := format.EncodeText(format.TextBackup, a)
	if err != nil {
		t.Fatal(err)
	}
	forged.SetObject(name(a), open)
	_, err = f.Get(ctx, a.ID)
	wantErr(t, "a manifest that is not sealed", err, ErrDamaged, "")

	// A config that says so.
	conf := r.config
	conf.Encryption, conf.HashKey = encryptionNone, strings.Repeat("00", 32)
	body, err := format.EncodeText(format.TextConfig, conf)
	if err != nil {
		t.Fatal(err)
	}
	forged = m.Clone()
	forged.SetObject(configName, body)
	_, err = openStore(ctx, forged, Secret{IdentityFiles: []string{identity}})
	wantErr(t, "a config without encryption", err, ErrNotEncrypted, "right repository")

	// A config with other chunks.
	conf = r.config
	conf.ChunkSize *= 2
	if body, err = format.EncodeText(format.TextConfig, conf); err != nil {
		t.Fatal(err)
	}
	forged.SetObject(configName, body)
	_, err = openStore(ctx, forged, Secret{IdentityFiles: []string{identity}})
	wantErr(t, "another config", err, ErrDamaged, "not the one that this key was made for")
}

// Repositories that earlier versions made are read and backed up to: v1, which
// names by SHA-256, and v2, which is encrypted. They are never made anew.
func TestEarlierVersions(t *testing.T) {
	want := make([]byte, 5*testChunk+4096)
	for i := range 2 {
		copy(want[i*2*testChunk:], bytes.Repeat(fmt.Appendf(nil, "first version, part %d\n", i), testChunk/22))
	}
	copy(want[5*testChunk:], "the end")
	for version, secret := range map[string]Secret{
		"v1": {},
		"v2": {PassphraseFile: secretFile(t, "a passphrase for a golden\n")},
	} {
		t.Run(version, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "repo")
			if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", version))); err != nil {
				t.Fatal(err)
			}
			r, err := Open(t.Context(), dir, secret)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			b, err := r.Get(t.Context(), "latest")
			if err != nil || b.Comment == "" {
				t.Fatalf("backup is %+v, %v", b, err)
			}
			target := dirty(t, len(want))
			restore(t, r, RestoreOptions{Backup: b.ID, Target: target, VerifyAfter: true})
			wantContent(t, "restored", target, want)

			again := create(t, r, CreateOptions{}, source(t, "db", want))
			if v := again.Volumes[0]; v.ReusedBytes != v.DataBytes || v.StoredBytes != 0 {
				t.Errorf("what is there is stored again: %+v", v)
			}
			changed := change(want, 1)
			other := create(t, r, CreateOptions{}, source(t, "db", changed))
			checkAll(t, r, images{b.ID: {"db": want}, again.ID: {"db": want}, other.ID: {"db": changed}})
			_, err = r.AddKey(t.Context(), KeyOptions{Secret: secret})
			if errors.Is(err, ErrNotEncrypted) == r.Encrypted() {
				t.Errorf("a key is added: %v", err)
			}
		})
	}
}
