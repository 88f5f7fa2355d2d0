package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/swapback/swapback/api"
)

func addYes(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask for confirmation")
}

// confirm asks before something is lost for good, naming all that will be.
// Where nobody can answer it refuses, so that a script has to say --yes.
func (a *app) confirm(verb string, loss []string, yes bool) error {
	if yes {
		return nil
	}
	list := strings.Join(loss, "\n  ")
	if !a.inTTY || a.json {
		return &cliError{
			exit: exitUsage, code: codeConfirmation,
			message: fmt.Sprintf("not confirmed: this would %s for good:\n  %s", verb, list),
			remedy:  "give --yes to do it without being asked",
		}
	}
	a.say(a.errOut, "This will %s for good:\n  %s\nGo on? [y/N] ", verb, list)
	answer, _ := bufio.NewReader(a.in).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return &cliError{exit: exitRefused, code: codeConfirmation, message: "not confirmed; nothing was changed"}
}

// lossOf describes a volume to somebody about to lose its content.
func (a *app) lossOf(v api.Volume) string {
	s := fmt.Sprintf("volume %s/%s, %s, generation %d", v.Pool, v.Name, formatSize(v.Size), v.Position.Generation)
	if v.Position.DescendsFrom != "" {
		s += ", from backup " + v.Position.DescendsFrom
	}
	if q := v.Position.Quarantine; q != nil {
		s += fmt.Sprintf(", in quarantine since %s (%s)", a.time(q.Time), q.Reason)
	}
	return s
}
