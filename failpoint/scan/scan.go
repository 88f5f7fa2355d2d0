// Package scan finds the failpoints of a source tree, so that no list of them
// has to be kept beside it.
package scan

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Point is a call of failpoint.Hit.
type Point struct {
	Name string // "operation: step"
	File string // path below the root that was scanned
	Line int
}

// Tree returns the points of all Go files below root that are not tests, in the
// order of their names. It is an error when a name is not a string constant,
// when two calls have the same, or when one has not the form "operation: step".
func Tree(root string) ([]Point, error) {
	var list []Point
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && path != root && (name == "build" || name == "testdata" || strings.HasPrefix(name, ".")):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		found, err := file(path)
		list = append(list, found...)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b Point) int { return strings.Compare(a.Name, b.Name) })
	for i := range list {
		p := &list[i]
		if i > 0 && p.Name == list[i-1].Name {
			return nil, fmt.Errorf("failpoint %q is at %s:%d and at %s:%d", p.Name, list[i-1].File, list[i-1].Line, p.File, p.Line)
		}
		if operation, step, ok := strings.Cut(p.Name, ": "); !ok || operation == "" || step == "" || strings.ContainsAny(p.Name, "=@\n") {
			return nil, fmt.Errorf("%s:%d: failpoint %q is not of the form \"operation: step\"", p.File, p.Line, p.Name)
		}
		if rel, err := filepath.Rel(root, p.File); err == nil {
			p.File = rel
		}
	}
	return list, nil
}

func file(path string) (list []Point, err error) {
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || err != nil || !isHit(call.Fun) {
			return err == nil
		}
		line := set.Position(call.Pos()).Line
		var lit *ast.BasicLit
		if len(call.Args) == 1 {
			lit, _ = call.Args[0].(*ast.BasicLit)
		}
		if lit == nil || lit.Kind != token.STRING {
			err = fmt.Errorf("%s:%d: the name of a failpoint has to be a string constant", path, line)
			return false
		}
		name, e := strconv.Unquote(lit.Value)
		if e != nil {
			err = fmt.Errorf("%s:%d: %w", path, line, e)
			return false
		}
		list = append(list, Point{Name: name, File: path, Line: line})
		return true
	})
	return list, err
}

func isHit(fun ast.Expr) bool {
	sel, ok := fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != "Hit" {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "failpoint"
}
