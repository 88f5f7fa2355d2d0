package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
)

// block is the unit of what is in an image, as of a file system's.
const block = 4096

// Kinds of the extents in an image.
const (
	zeroes = iota
	pressable
	random
	kinds
)

// fillers are what the third that can be compressed may be made of.
var fillers = map[string]func(rnd *rand.Rand) filler{
	"fio":  func(rnd *rand.Rand) filler { return fioBlocks{rnd} },
	"text": func(rnd *rand.Rand) filler { return newWriter(rnd) },
}

type filler interface{ fill(p []byte) }

// makeImage writes an image: a third zeroes, written and not holes, a third of what
// the filler makes, a third random bytes, in extents of 16 KiB to 4 MiB that begin
// at any block, as a file system leaves them. The same size gives the same image.
func makeImage(path string, size int64, fill func(rnd *rand.Rand) filler) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	rnd := rand.New(rand.NewPCG(1, 1))
	noise := rand.NewChaCha8([32]byte{1})
	words := fill(rnd)
	buf := make([]byte, 1<<20)
	var left [kinds]int64
	for k := range left {
		left[k] = size / kinds / block * block
	}
	left[zeroes] += size - left[zeroes] - left[pressable] - left[random]
	for at := int64(0); at < size; {
		k := rnd.IntN(kinds)
		n := min(block*(4+rnd.Int64N(1021)), left[k])
		left[k] -= n
		at += n
		for n > 0 {
			p := buf[:min(n, int64(len(buf)))]
			switch k {
			case zeroes:
				clear(p)
			case pressable:
				words.fill(p)
			case random:
				noise.Read(p)
			}
			if _, err := w.Write(p); err != nil {
				return err
			}
			n -= int64(len(p))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Sync()
}

// fioBlocks is what fio writes with buffer_compress_percentage=66: of every 512
// bytes the first third is random and the rest is zeroes. It is how the tools that
// test storage make data that compresses to a third.
type fioBlocks struct{ rnd *rand.Rand }

func (f fioBlocks) fill(p []byte) {
	const segment, noise = 512, 512 * 34 / 100 &^ 7
	for len(p) > 0 {
		s := p[:min(segment, len(p))]
		p = p[len(s):]
		for i := 0; i < min(noise, len(s)); i += 8 {
			binary.LittleEndian.PutUint64(s[i:], f.rnd.Uint64())
		}
		clear(s[min(noise, len(s)):])
	}
}

// writer makes text: phrases of 6 to 29 letters and blanks, 16384 of them, that
// come as often as words do (Zipf's law). It is as hard to compress as the source
// code of a large program: zstd makes about a quarter of both, at the same speed.
type writer struct {
	zipf    *rand.Zipf
	phrases [][]byte
	rest    []byte // of the phrase that did not fit
}

func newWriter(rnd *rand.Rand) *writer {
	const letters = "eeeeeeetttttaaaaooooiiinnnsssrrrhhlldducmfpgwybvk     \n"
	const phrases = 16384
	w := &writer{zipf: rand.NewZipf(rnd, 1.02, 20, phrases-1)}
	for range phrases {
		p := make([]byte, 6+rnd.IntN(24))
		for i := range p {
			p[i] = letters[rnd.IntN(len(letters))]
		}
		w.phrases = append(w.phrases, p)
	}
	return w
}

func (w *writer) fill(p []byte) {
	for len(p) > 0 {
		if len(w.rest) == 0 {
			w.rest = w.phrases[w.zipf.Uint64()]
		}
		n := copy(p, w.rest)
		p, w.rest = p[n:], w.rest[n:]
	}
}

// changeImage makes a copy of an image in which a hundredth of the bytes have
// been written anew, in random blocks, and returns where these are, in order.
func changeImage(from, to string, seed byte) (offsets []int64, err error) {
	in, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	size, err := io.Copy(out, in)
	if err != nil {
		return nil, err
	}
	rnd := rand.New(rand.NewPCG(uint64(seed), 2))
	noise := rand.NewChaCha8([32]byte{seed, 1})
	p := make([]byte, block)
	for range size / block / 100 {
		noise.Read(p)
		off := block * rnd.Int64N(size/block)
		if _, err := out.WriteAt(p, off); err != nil {
			return nil, err
		}
		offsets = append(offsets, off)
	}
	slices.Sort(offsets)
	return slices.Compact(offsets), out.Sync()
}

// inChunks is how many bytes the chunks have that blocks lie in.
func inChunks(offsets []int64, chunk, size int64) (n int64) {
	last := int64(-1)
	for _, off := range offsets {
		if c := off / chunk; c != last {
			last = c
			n += min(chunk, size-c*chunk)
		}
	}
	return n
}

// parseSize reads a number of bytes with K, M or G behind it; whole blocks.
func parseSize(s string) (int64, error) {
	number, shift := s, 0
	if i := strings.IndexAny(s, "KMG"); i >= 0 && i == len(s)-1 {
		number, shift = s[:i], map[byte]int{'K': 10, 'M': 20, 'G': 30}[s[i]]
	}
	n, err := strconv.ParseInt(number, 10, 32+8)
	if err != nil || n <= 0 || n<<shift>>shift != n || (n<<shift)%block != 0 {
		return 0, errors.New("want a number of whole blocks, such as 3G, 512M or 8192K")
	}
	return n << shift, nil
}
