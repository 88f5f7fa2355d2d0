package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/keyslot"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/seal"
	"github.com/swapback/swapback/backup/internal/store"
)

const (
	keyDir = "keys"
	// maxKeys bounds how many keys are tried.
	maxKeys = 1024
)

// KeyInfo describes a key: one of the ways to open an encrypted repository.
type KeyInfo struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"` // "passphrase" or "age"
	Created time.Time `json:"created"`
	Label   string    `json:"label,omitempty"`
	// Recipient is the age recipient, "age1…".
	Recipient string `json:"recipient,omitempty"`
	// Damaged says why the key can't be read; then there is an ID and nothing else.
	Damaged string `json:"damaged,omitempty"`
}

// KeyOptions describes a new key: a passphrase's, or an age recipient's.
type KeyOptions struct {
	Secret    Secret // where the passphrase is
	Recipient string
	Label     string
}

// firstKeys makes the keys of a new repository.
func (r *Repository) firstKeys(ctx context.Context, op string, o InitOptions) error {
	for _, recipient := range o.Recipients {
		if _, err := r.addKey(ctx, op, KeyOptions{Recipient: recipient}); err != nil {
			return err
		}
	}
	if o.Secret.empty() && o.Secret.Ask == nil {
		return nil
	}
	_, err := r.addKey(ctx, op, KeyOptions{Secret: o.Secret})
	return err
}

// AddKey makes one more way to open the repository.
func (r *Repository) AddKey(ctx context.Context, o KeyOptions) (KeyInfo, error) {
	op := "add a key to " + r.Location()
	if r.master == nil {
		return KeyInfo{}, &Error{Kind: ErrNotEncrypted, Op: op, Remedy: "copy its backups into an encrypted repository"}
	}
	return r.addKey(ctx, op, o)
}

func (r *Repository) addKey(ctx context.Context, op string, o KeyOptions) (info KeyInfo, err error) {
	vouched, err := r.config.vouched()
	if err != nil {
		return info, err
	}
	slot := keyslot.Slot{ID: r.newID().String(), Created: r.now().UTC(), Label: o.Label}
	if o.Recipient != "" {
		err = slot.ForRecipient(o.Recipient, *r.master, vouched)
		if err != nil {
			return info, &Error{Kind: ErrInvalid, Op: op, Err: err, Remedy: "give what age-keygen shows as the public key, age1…"}
		}
	} else {
		var p []byte
		if p, err = o.Secret.passphrase(ctx); err != nil {
			return info, err
		}
		if p == nil {
			return info, &Error{Kind: ErrInvalid, Op: op, Detail: "neither a passphrase nor a recipient is given"}
		}
		if err = slot.ForPassphrase(p, *r.master, vouched); err != nil {
			return info, wrap(op, err)
		}
	}
	if err := slot.Check(); err != nil {
		return info, &Error{Kind: ErrInvalid, Op: op, Err: err}
	}
	if err := putText(ctx, r.store, keyDir+"/"+slot.ID, store.Exclusive, format.TextKey, slot); err != nil {
		return info, wrap(op, err)
	}
	return infoOf(slot), nil
}

func infoOf(s keyslot.Slot) KeyInfo {
	return KeyInfo{ID: s.ID, Kind: s.Kind, Created: s.Created, Label: s.Label, Recipient: s.Recipient}
}

// Keys lists the keys, oldest first.
func (r *Repository) Keys(ctx context.Context) ([]KeyInfo, error) {
	op := "list the keys of " + r.Location()
	if r.master == nil {
		return nil, &Error{Kind: ErrNotEncrypted, Op: op}
	}
	var list []KeyInfo
	err := r.eachKey(ctx, func(id string, s *keyslot.Slot, err error) error {
		if err != nil {
			list = append(list, KeyInfo{ID: id, Damaged: err.Error()})
			return nil
		}
		list = append(list, infoOf(*s))
		return nil
	})
	slices.SortStableFunc(list, func(a, b KeyInfo) int { return a.Created.Compare(b.Created) })
	return list, wrap(op, err)
}

// eachKey calls f for every key; err is why one can't be used.
func (r *Repository) eachKey(ctx context.Context, f func(id string, s *keyslot.Slot, err error) error) error {
	infos, err := r.store.List(ctx, keyDir)
	if err != nil {
		return err
	}
	for _, i := range infos[:min(len(infos), maxKeys)] {
		id := strings.TrimPrefix(i.Name, keyDir+"/")
		if _, err := format.ParseID(id); err != nil {
			continue
		}
		var s keyslot.Slot
		body, err := readText(ctx, r.store, i.Name)
		if err == nil {
			err = format.DecodeText(body, format.TextKey, &s)
		}
		if err == nil {
			err = s.Check()
		}
		if err == nil && s.ID != id {
			err = fmt.Errorf("%w: it is key %.64q", format.ErrCorrupt, s.ID)
		}
		switch {
		case errors.Is(err, store.ErrNotExist):
			continue // removed since
		case err != nil && !pack.IsDamage(err) && !errors.Is(err, format.ErrVersion):
			return err
		}
		if err := f(id, &s, err); err != nil {
			return err
		}
	}
	return nil
}

// RemoveKey removes a key. The last one stays. Whoever knew its secret may have
// kept the master key: what he could read he can read for ever.
func (r *Repository) RemoveKey(ctx context.Context, id string) error {
	op := fmt.Sprintf("remove key %q from %s", id, r.Location())
	lock, err := r.lock(ctx) // two who each remove the other's
	if err != nil {
		return wrap(op, err)
	}
	defer lock.release()
	list, err := r.Keys(ctx)
	if err != nil {
		return err
	}
	var found []string
	usable := 0
	for _, k := range list {
		match := id != "" && strings.HasPrefix(k.ID, id)
		if match {
			found = append(found, k.ID)
		} else if k.Damaged == "" {
			usable++
		}
	}
	switch {
	case len(found) == 0:
		return &Error{Kind: ErrNotFound, Op: op, Detail: "no key has this ID", Remedy: "see which there are with: swapback repo key list"}
	case len(found) > 1:
		return &Error{Kind: ErrAmbiguous, Op: op, Detail: some(found), Remedy: "give more letters of the ID"}
	case usable == 0:
		return &Error{Kind: ErrInvalid, Op: op, Detail: "it is the last key", Remedy: "add another one first with: swapback repo key add"}
	}
	if err := lock.check(); err != nil {
		return wrap(op, err)
	}
	return wrap(op, r.store.Delete(ctx, keyDir+"/"+found[0]))
}

// unlock finds the key that the secret opens.
func (r *Repository) unlock(ctx context.Context, op string, secret Secret) error {
	if r.config.Encryption == encryptionNone {
		if secret.empty() {
			return nil
		}
		return &Error{Kind: ErrNotEncrypted, Op: op, Detail: "a secret was given",
			Remedy: "make sure that it is the right repository; then leave the secret out"}
	}
	ids, err := secret.identities()
	if err != nil {
		return err
	}
	vouched, err := r.config.vouched()
	if err != nil {
		return err
	}
	var passphrase []byte
	var bad []string // what is wrong with keys
	var master *seal.Key
	keys := 0
	try := func(id string, s *keyslot.Slot, err error) error {
		var k seal.Key
		keys++
		switch {
		case master != nil || ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
		case s.Kind == keyslot.Age && len(ids) > 0:
			k, err = s.OpenIdentities(ids, vouched)
		case s.Kind == keyslot.Passphrase:
			if passphrase == nil {
				if passphrase, err = secret.passphrase(ctx); err != nil {
					return err
				}
			}
			if passphrase == nil {
				return nil
			}
			k, err = s.OpenPassphrase(passphrase, vouched)
		default:
			return nil
		}
		switch {
		case err == nil:
			master = &k
		case !errors.Is(err, keyslot.ErrNoMatch):
			bad = append(bad, fmt.Sprintf("%s/%s: %v", keyDir, id, err))
		}
		return nil
	}
	if err := r.eachKey(ctx, try); err != nil {
		return wrap(op, err)
	}
	if master == nil {
		return noKey(op, secret, keys, bad)
	}
	return r.setMaster(*master)
}

// noKey says why none of so many keys opened the repository.
func noKey(op string, secret Secret, keys int, bad []string) error {
	switch {
	case len(bad) == keys:
		e := &Error{Kind: ErrDamaged, Op: op, Detail: some(bad), Remedy: "copy the folder " + keyDir + " back from another copy of the repository; without a key nobody reads it"}
		if keys == 0 {
			e.Detail = "it is encrypted and has no key"
		}
		return e
	case secret.empty() && secret.Ask == nil:
		return &Error{Kind: ErrSecret, Op: op, Detail: "the repository is encrypted",
			Remedy: "give a passphrase file, a passphrase command or an age identity"}
	}
	return &Error{Kind: ErrLocked, Op: op, Detail: some(bad), Remedy: "give another passphrase or age identity"}
}
