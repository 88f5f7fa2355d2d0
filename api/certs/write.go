package certs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Replace puts text into the place of a file, which is there or not: whoever reads
// meanwhile sees the old or the new one, whole, and so does a crash.
func Replace(path string, text []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return &Error{File: path, Problem: "can't be written: " + cause(err), Err: err}
	}
	tmp := f.Name()
	f.Close()
	err = os.Remove(tmp)
	if err == nil {
		err = writeNew(tmp, text, mode)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return &Error{File: path, Problem: "can't be written: " + cause(err), Err: err}
	}
	return syncDir(filepath.Dir(path))
}

// WriteNew writes a file that must not be there yet.
func WriteNew(path string, text []byte, mode fs.FileMode) error {
	if err := writeNew(path, text, mode); err != nil {
		return &Error{File: path, Problem: "can't be written: " + cause(err), Remedy: "name another file", Err: err}
	}
	return syncDir(filepath.Dir(path))
}

func writeNew(path string, text []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(mode) // the mask of the process counts for a new file
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}

// Lock keeps others that call it from changing what is in a folder until the
// function that it returns is called.
func Lock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err == nil {
		if err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
			d.Close()
		}
	}
	if err != nil {
		return nil, &Error{File: dir, Problem: "can't be locked: " + cause(err), Remedy: "swapback cert init makes the folder; --dir names another", Err: err}
	}
	return func() { d.Close() }, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("make folder %s durable: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("make folder %s durable: %w", dir, err)
	}
	return nil
}
