package main

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestVMTests(t *testing.T) {
	dir := t.TempDir()
	src := `//go:build vm

package x

import "testing"

type T struct{}

func TestMain(m *testing.M)  {}
func TestOne(t *testing.T)   {}
func helper()                {}
func (T) TestMethod()        {}
func FuzzTwo(f *testing.F)   {}
func ExampleThree()          {}
`
	if err := os.WriteFile(filepath.Join(dir, "x_vm_test.go"), []byte(src), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := vmTests(dir, []string{"x_vm_test.go"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "^(TestOne|FuzzTwo|ExampleThree)$"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := vmTests(dir, []string{"missing_test.go"}); err == nil {
		t.Error("a missing file was accepted")
	}
}

func TestQuote(t *testing.T) {
	if got, want := quote(`a'b $c`), `'a'\''b $c'`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestLabelled(t *testing.T) {
	var b bytes.Buffer
	l := &labelled{mu: new(sync.Mutex), to: &b, label: "6.12", began: make(chan struct{})}
	for _, part := range []string{"one\ntw", "o\n", "\n", "cut off"} {
		if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	<-l.began
	if want := "6.12  one\n6.12  two\n6.12  \n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}
