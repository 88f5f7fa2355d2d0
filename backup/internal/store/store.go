// Package store keeps the objects of a repository: named, immutable runs of
// bytes. It knows nothing of what is in them.
//
// An object appears whole and durable, or not at all. There are two
// implementations, [Folder] and [S3]; package storetest holds the suite that every
// implementation passes.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
)

// Errors of a Store. Others are the system's own and match errno values.
var (
	ErrNotExist = fs.ErrNotExist
	ErrExist    = fs.ErrExist
	// ErrShort is a read beyond the end of an object.
	ErrShort = errors.New("object ends too early")
	// ErrScheme is a location of a kind that there is no store for.
	ErrScheme = errors.New("no store for this kind of location")
)

// Info describes an object.
type Info struct {
	Name string
	Size int64
}

// Mode says what Commit does when the name is taken.
type Mode int

// Modes of Create.
const (
	Exclusive Mode = iota // Commit fails with ErrExist
	Replace               // Commit exchanges the object in one step
)

// Store keeps objects. Names are slash-separated, as ValidName checks. Methods
// may be called concurrently and by several processes on the same location.
// Whatever was committed or deleted is seen by every later call of everybody.
// Errors are final: what is worth trying again, a store has tried again.
type Store interface {
	// Location is what a person calls the store.
	Location() string

	// Foreign returns names that have no business in a store that is about to
	// be initialised.
	Foreign(ctx context.Context) ([]string, error)

	// Create begins an object. Nobody sees it before Commit.
	Create(ctx context.Context, name string, mode Mode) (Writer, error)

	// ReadAt fills p from offset off. When the object ends before p is full it
	// returns ErrShort and p's contents are undefined.
	ReadAt(ctx context.Context, name string, p []byte, off int64) error

	// Size returns the object's size in bytes.
	Size(ctx context.Context, name string) (int64, error)

	// List returns the objects below the folder dir, at any depth, sorted by
	// name. A folder that is not there is empty.
	List(ctx context.Context, dir string) ([]Info, error)

	// Delete removes objects durably. Those that are not there are no error.
	// After an error any of them may be left.
	Delete(ctx context.Context, names ...string) error

	// Hold creates an object that counts as held until Release is called or
	// the process ends, however it ends.
	Hold(ctx context.Context, name string, body []byte) (Hold, error)

	// Held tells whether the object's holder is still there. An object that is
	// not there is not held.
	Held(ctx context.Context, name string) (bool, error)

	// Lock waits until it holds the lock of this name alone. The lock ends when
	// it is released or with the process. Whoever holds it asks its Err before
	// what nobody else must do meanwhile.
	Lock(ctx context.Context, name string) (Hold, error)

	// Clean removes what writers left that ended without Commit or Abort.
	// Writers that are at work are not disturbed.
	Clean(ctx context.Context) (bytes int64, err error)

	// Close releases the store's own resources. Objects are not affected.
	Close() error
}

// Writer writes one object. It is used by one goroutine at a time, and ends with
// exactly one Commit or Abort.
type Writer interface {
	// Write appends p, all or an error. It does not keep p.
	Write(p []byte) (int, error)
	// Commit makes the object durable and then visible. After an error the
	// object is not visible, except when the error came from making its
	// visibility durable.
	Commit(ctx context.Context) error
	// Abort gives the object up. It does nothing after Commit.
	Abort()
}

// Hold is a held object, or a lock.
type Hold interface {
	// Release removes the object, or ends the lock. It may be called more than
	// once.
	Release() error
	// Err tells whether others may by now take the object for abandoned. Once it
	// has said so it does not take it back.
	Err() error
}

// ValidName tells whether a name can be an object's: parts of letters, digits,
// '.', '_' and '-' that do not begin with a dot, joined by slashes.
func ValidName(name string) bool {
	if len(name) > 512 {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' {
			return false
		}
		for i := range len(part) {
			c := part[i]
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
				return false
			}
		}
	}
	return true
}

func checkName(op, name string) error {
	if !ValidName(name) {
		return fmt.Errorf("%s %q: not a name for an object", op, name)
	}
	return nil
}

// Open opens the store at a location: a path, file:///PATH, or what [ParseS3]
// reads. Other schemes give ErrScheme. A folder that is not there is ErrNotExist;
// a bucket is only asked for later.
func Open(location string) (Store, error) {
	if isS3(location) {
		return OpenS3(location, S3Options{})
	}
	path, err := FolderPath(location)
	if err != nil {
		return nil, err
	}
	return OpenFolder(path)
}

// Make is Open for a store that need not be there. A bucket must be.
func Make(location string) (Store, error) {
	if isS3(location) {
		return OpenS3(location, S3Options{})
	}
	path, err := FolderPath(location)
	if err != nil {
		return nil, err
	}
	return MakeFolder(path)
}

func isS3(location string) bool { return strings.HasPrefix(location, "s3:") }

// FolderPath returns the folder that a location names: a path, or a file:// URL
// without a host. Other schemes give ErrScheme.
func FolderPath(location string) (string, error) {
	scheme, _, found := strings.Cut(location, "://")
	if !found {
		if location == "" {
			return "", fmt.Errorf("%w: the location is empty", ErrScheme)
		}
		return location, nil
	}
	if scheme != "file" {
		return "", fmt.Errorf("%w: %s://", ErrScheme, scheme)
	}
	u, err := url.Parse(location)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrScheme, err)
	}
	if (u.Host != "" && u.Host != "localhost") || !strings.HasPrefix(u.Path, "/") {
		return "", fmt.Errorf("%w: a file URL is file:// and an absolute path", ErrScheme)
	}
	return u.Path, nil
}
