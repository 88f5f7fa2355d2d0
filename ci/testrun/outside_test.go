package main

import (
	"os"
	"path/filepath"
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

func TestPair(t *testing.T) {
	p := goPackage{TestImports: []string{"testing", "example.com/m/ci/peerless"}}
	p.Module.Path = "example.com/m"
	if p.pair() {
		t.Error("a package that wants one machine gets two")
	}
	p.XTestImports = []string{"example.com/m/ci/peer"}
	if !p.pair() {
		t.Error("a package that wants two machines gets one")
	}
}

func TestQuote(t *testing.T) {
	if got, want := quote(`a'b $c`), `'a'\''b $c'`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
