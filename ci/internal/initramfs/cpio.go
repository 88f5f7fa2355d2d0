// Package initramfs writes the small cpio archive ("newc" format, see the
// kernel's Documentation/driver-api/early-userspace/buffer-format.rst) from
// which the test machine boots.
package initramfs

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// Writer writes one archive. It adds the folders that a file needs by itself.
// Nothing is compressed: unpacking costs more under emulation than reading.
// A Writer is not safe for use by several goroutines.
type Writer struct {
	w    io.Writer
	pos  int64
	ino  uint32
	dirs map[string]bool
	err  error
}

// NewWriter starts an archive on w. The caller closes w, after Close.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, dirs: map[string]bool{".": true, "/": true, "": true}}
}

const (
	typeDir  = 0o040000
	typeFile = 0o100000
	typeChar = 0o020000
)

// Dir adds a folder and the folders above it.
func (w *Writer) Dir(name string) error {
	name = clean(name)
	if w.dirs[name] {
		return w.err
	}
	if err := w.Dir(path.Dir(name)); err != nil {
		return err
	}
	w.dirs[name] = true
	return w.entry(name, typeDir|0o755, 0, 0, nil)
}

// File adds a regular file.
func (w *Writer) File(name string, mode uint32, data []byte) error {
	name = clean(name)
	if err := w.Dir(path.Dir(name)); err != nil {
		return err
	}
	return w.entry(name, typeFile|mode&0o7777, 0, 0, data)
}

// Char adds a character device. The kernel opens /dev/console for init before
// init has had a chance to mount anything, so that one node must be here.
func (w *Writer) Char(name string, mode, major, minor uint32) error {
	name = clean(name)
	if err := w.Dir(path.Dir(name)); err != nil {
		return err
	}
	return w.entry(name, typeChar|mode&0o7777, major, minor, nil)
}

// Close writes the trailer. Archives may follow one another in one file; the
// kernel unpacks them all.
func (w *Writer) Close() error {
	return w.entry("TRAILER!!!", 0, 0, 0, nil)
}

func (w *Writer) entry(name string, mode, major, minor uint32, data []byte) error {
	if w.err != nil {
		return w.err
	}
	if int64(len(data)) > 0xffffffff {
		w.err = fmt.Errorf("initramfs: %s: %d bytes do not fit into a cpio entry", name, len(data))
		return w.err
	}
	w.ino++
	links := 1
	if mode&0o170000 == typeDir {
		links = 2
	}
	var b strings.Builder
	b.WriteString("070701")
	for _, v := range []uint32{
		w.ino, mode, 0, 0, uint32(links), 0, uint32(len(data)),
		0, 0, major, minor, uint32(len(name) + 1), 0,
	} {
		fmt.Fprintf(&b, "%08X", v)
	}
	b.WriteString(name)
	b.WriteByte(0)
	w.write([]byte(b.String()))
	w.pad()
	w.write(data)
	w.pad()
	return w.err
}

func (w *Writer) write(p []byte) {
	if w.err != nil || len(p) == 0 {
		return
	}
	n, err := w.w.Write(p)
	w.pos += int64(n)
	if err != nil {
		w.err = fmt.Errorf("initramfs: write at byte %d: %w", w.pos, err)
	}
}

// pad brings the position to a multiple of four.
func (w *Writer) pad() {
	if n := w.pos % 4; n != 0 {
		w.write(make([]byte, 4-n))
	}
}

func clean(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}
