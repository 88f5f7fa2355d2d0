package ublk

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// The queue's own files, and the ring's, know atomics and no locks: not even
// those that nobody contends for, which TestNoLockUnderLoad could not count.
func TestQueueKnowsNoLocks(t *testing.T) {
	files, err := filepath.Glob("queue*.go")
	if err != nil || len(files) < 5 {
		t.Fatalf("files %v, %v", files, err)
	}
	rings, err := filepath.Glob("uring/*.go")
	if err != nil || len(rings) < 4 {
		t.Fatalf("files %v, %v", rings, err)
	}
	files = append(files, rings...)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			if imp.Path.Value == `"sync"` {
				t.Errorf("%s imports sync", name)
			}
		}
	}
}
