package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// vmTags are the build tags of integration tests. With failpoint, what a test
// runs in its own process can be made to die at a named step.
const vmTags = "vm,failpoint"

// manifest tells the inside what to run.
type manifest struct {
	Packages []compiled
}

type compiled struct {
	Name, Dir, Binary string
	// Run is the -test.run of this package.
	Run string
	// Pair says that it wants two machines.
	Pair bool
}

// runOutside compiles the tests and boots the machine.
func runOutside(ctx context.Context, o *options) error {
	pattern := o.pkg
	if pattern == "" {
		pattern = "./..."
	}
	pkgs, err := vmPackages(ctx, pattern)
	if err != nil {
		return err
	}
	if len(pkgs) == 0 {
		return fmt.Errorf("%s has no tests with the build tag vm", pattern)
	}
	root, err := filepath.Abs("build/test")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("make a folder for test binaries: %w", err)
	}
	dir, err := os.MkdirTemp(root, "run-")
	if err != nil {
		return fmt.Errorf("make a folder for test binaries: %w", err)
	}
	defer os.RemoveAll(dir)

	var m manifest
	broken := false
	for _, p := range pkgs {
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, p.Module.Path), "/")
		if p.pair() && o.native {
			fmt.Printf("left out: %s, which needs two machines\n", name)
			continue
		}
		bin := filepath.Join(dir, strings.ReplaceAll(name, "/", "-")+".test")
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", vmTags, "-o", bin, p.ImportPath)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Printf("FAIL  %s does not compile\n", name)
			broken = true
			continue
		}
		run := o.run
		if run == "" {
			if run, err = vmTests(p.Dir, p.tagged); err != nil {
				return err
			}
		}
		m.Packages = append(m.Packages, compiled{name, p.Dir, bin, run, p.pair()})
	}
	if len(m.Packages) == 0 {
		return &failedError{1}
	}
	status, err := boot(ctx, o, dir, &m)
	if err != nil {
		return err
	}
	if status == 0 && broken {
		status = 1
	}
	if status != 0 {
		return &failedError{status}
	}
	return nil
}

// boot runs the compiled tests in the machine. A failure of QEMU is no verdict
// on what is tested, so it gets a second chance.
func boot(ctx context.Context, o *options, dir string, m *manifest) (int, error) {
	list := filepath.Join(dir, "manifest.json")
	data, err := json.Marshal(m)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(list, data, 0o644); err != nil {
		return 0, fmt.Errorf("write the list of tests: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find this program: %w", err)
	}
	// A copy of our own: a build while the machine runs would pull it away.
	own := filepath.Join(dir, "testrun")
	program, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(own, program, 0o755)
	}
	if err != nil {
		return 0, fmt.Errorf("copy this program: %w", err)
	}
	inside := []string{own, "-inside", list, "-count", fmt.Sprint(o.count), "-timeout", o.timeout.String()}
	if o.verbose {
		inside = append(inside, "-v")
	}
	for i, a := range inside {
		inside[i] = quote(a)
	}
	vm := filepath.Join(filepath.Dir(self), "vm")
	args := []string{"-again", "-kernel", o.kernel}
	if os.Getenv("VM_TIMEOUT") == "" {
		args = append(args, "-timeout", "80m") // each package has a limit of its own
	}
	if slices.ContainsFunc(m.Packages, func(p compiled) bool { return p.Pair }) {
		args = append(args, "-peer", quote(own)+" -peer")
	}
	cmd := exec.CommandContext(ctx, vm, append(args, "--", strings.Join(inside, " "))...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it has a machine to end
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return exit.ExitCode(), nil
	default:
		return 0, fmt.Errorf("run the test machine: %w", err)
	}
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

type goPackage struct {
	ImportPath, Dir           string
	Module                    struct{ Path string }
	TestGoFiles, XTestGoFiles []string
	TestImports, XTestImports []string

	// tagged are the test files that only the tag vm brings.
	tagged []string
}

// pair tells whether the package's tests run programs on a second machine.
func (p *goPackage) pair() bool {
	const machine = "/ci/peer"
	return slices.Contains(p.TestImports, p.Module.Path+machine) || slices.Contains(p.XTestImports, p.Module.Path+machine)
}

// vmPackages lists the packages that have more test files with the tag vm than
// without it.
func vmPackages(ctx context.Context, pattern string) ([]goPackage, error) {
	without, err := goList(ctx, pattern)
	if err != nil {
		return nil, err
	}
	with, err := goList(ctx, pattern, "-tags", vmTags)
	if err != nil {
		return nil, err
	}
	plain := map[string][]string{}
	for _, p := range without {
		plain[p.ImportPath] = append(p.TestGoFiles, p.XTestGoFiles...)
	}
	var out []goPackage
	for _, p := range with {
		for _, f := range append(p.TestGoFiles, p.XTestGoFiles...) {
			if !slices.Contains(plain[p.ImportPath], f) {
				p.tagged = append(p.tagged, f)
			}
		}
		if len(p.tagged) > 0 {
			out = append(out, p)
		}
	}
	return out, nil
}

// vmTests is a -test.run that matches the tests in some files of a package: its
// other tests have been run on the host, where they take a tenth of the time.
func vmTests(dir string, files []string) (string, error) {
	var names []string
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return "", fmt.Errorf("look for tests: %w", err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || fn.Name.Name == "TestMain" {
				continue
			}
			for _, kind := range []string{"Test", "Fuzz", "Example"} {
				if strings.HasPrefix(fn.Name.Name, kind) {
					names = append(names, fn.Name.Name)
				}
			}
		}
	}
	return "^(" + strings.Join(names, "|") + ")$", nil
}

func goList(ctx context.Context, pattern string, flags ...string) ([]goPackage, error) {
	// -e: a package that does not compile is reported where it is compiled.
	args := append([]string{"list", "-e", "-json=ImportPath,Dir,Module,TestGoFiles,XTestGoFiles,TestImports,XTestImports"}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, strings.Fields(pattern)...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w", pattern, err)
	}
	var list []goPackage
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list %s: %w", pattern, err)
		}
		list = append(list, p)
	}
}
