// Tools sees to it that this Debian machine has the programs of a list: it
// installs what is missing when root runs it, and else says what to install.
//
//	tools backup    what make bench-backup compares with
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/swapback/swapback/ci/internal/hosttools"
)

func main() {
	if len(os.Args) != 2 || os.Args[1] != "backup" {
		fmt.Fprintln(os.Stderr, "usage: tools backup")
		os.Exit(2)
	}
	notice := func(format string, args ...any) { fmt.Fprintf(os.Stderr, "tools: "+format+"\n", args...) }
	if err := hosttools.Ensure(context.Background(), hosttools.Backup(), notice); err != nil {
		notice("%v", err)
		os.Exit(1)
	}
}
