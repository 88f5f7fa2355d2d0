package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/backup"
	"github.com/swapback/swapback/dmswap"
)

// Exit codes, as every help text states them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitInUse       = 4
	exitRefused     = 5
	exitPartial     = 6
	exitInterrupted = 130 // as shells report a command that SIGINT ended
)

const exitCodeHelp = `
Exit codes: 0 done, 1 failed (or a check found something), 2 bad arguments,
  3 no such thing, 4 busy or in use, 5 refused for safety or for want of a
  right, 6 restored but for what is damaged in the repository, 130 interrupted
`

// Codes of errors that only the command line knows, beside the API's.
const (
	codeConfirmation = "confirmation" // somebody has to agree first
	codeDamaged      = "damaged"      // a backup cannot be read back whole
	codeInterrupted  = "interrupted"
	codeProblems     = "problems" // a check found something
	codeSecret       = "secret"   // the repository does not open with what was given
)

// cliError is an error with everything that the exit code and --json need.
type cliError struct {
	exit    int
	code    string
	message string
	remedy  string
	// shown says that the result already told the story: people need no more.
	shown bool
}

func (e *cliError) Error() string {
	if e.remedy == "" {
		return e.message
	}
	return e.message + "\n  " + e.remedy
}

func (e *cliError) withRemedy(remedy string) *cliError {
	e.remedy = remedy
	return e
}

// usagef is an error in what the user typed; nothing was tried.
func usagef(format string, args ...any) *cliError {
	return &cliError{exit: exitUsage, code: api.CodeInvalid, message: fmt.Sprintf(format, args...)}
}

// problems is the end of a check that ran and found something.
func problems(message string) *cliError {
	return &cliError{exit: exitFailed, code: codeProblems, message: message, shown: true}
}

// errorJSON is what --json prints on stderr.
type errorJSON struct {
	Code    string       `json:"code"`
	Message string       `json:"message"`
	Remedy  string       `json:"remedy,omitempty"`
	Holders []api.Holder `json:"holders,omitempty"`
}

// fail reports an error and returns the exit code that goes with it.
func (a *app) fail(ctx context.Context, err error) int {
	e, exit := classify(ctx, err)
	var ce *cliError
	shown := errors.As(err, &ce) && ce.shown
	switch {
	case a.json:
		b, merr := json.Marshal(e)
		if merr != nil {
			b = []byte(err.Error())
		}
		fmt.Fprintf(a.errOut, "%s\n", b)
	case !shown:
		a.say(a.errOut, "swapback: %v\n", err)
	}
	return exit
}

// classify finds the code, the remedy and the exit code of an error.
func classify(ctx context.Context, err error) (errorJSON, int) {
	var ce *cliError
	var ae *api.Error
	var be *backup.Error
	switch {
	case errors.As(err, &ce):
		return errorJSON{Code: ce.code, Message: ce.message, Remedy: ce.remedy}, ce.exit
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return errorJSON{Code: codeInterrupted, Message: err.Error()}, exitInterrupted
	case errors.As(err, &ae):
		// What was wrapped around it says what was being done.
		message := strings.Replace(err.Error(), ae.Error(), ae.Message, 1)
		return errorJSON{Code: ae.Code, Message: message, Remedy: ae.Remedy, Holders: ae.Holders}, exitOfAPI(ae.Code)
	}
	code, exit := ofBackup(err)
	if de := (*dmswap.Error)(nil); errors.As(err, &de) {
		code, exit = ofPool(err)
		remedy := dmswap.Remedy(err)
		return errorJSON{Code: code, Message: strings.TrimSuffix(err.Error(), " ("+remedy+")"), Remedy: remedy}, exit
	}
	e := errorJSON{Code: code, Message: err.Error()}
	if errors.As(err, &be) && be.Remedy != "" {
		bare := *be
		bare.Remedy = ""
		e.Message, e.Remedy = strings.Replace(err.Error(), be.Error(), bare.Error(), 1), be.Remedy
	}
	return e, exit
}

func exitOfAPI(code string) int {
	switch code {
	case api.CodeInvalid:
		return exitUsage
	case api.CodeNotFound:
		return exitNotFound
	case api.CodeBusy, api.CodeInUse:
		return exitInUse
	case api.CodeGeneration, api.CodeQuarantined, api.CodeDegraded, api.CodeDenied:
		return exitRefused
	}
	return exitFailed
}

// ofPool returns the code and exit code of an error of package dmswap, which the
// rescue of metadata meets without a daemon.
func ofPool(err error) (string, int) {
	for _, k := range []struct {
		is   error
		code string
	}{
		{dmswap.ErrNotFound, api.CodeNotFound},
		{dmswap.ErrNoPool, api.CodeNotFound},
		{dmswap.ErrInvalid, api.CodeInvalid},
		{dmswap.ErrGeneration, api.CodeGeneration},
		{dmswap.ErrBusy, api.CodeBusy},
		{dmswap.ErrDamaged, codeDamaged},
	} {
		if errors.Is(err, k.is) {
			return k.code, exitOfAPI(k.code)
		}
	}
	return api.CodeInternal, exitFailed
}

// ofBackup returns the code and exit code of an error of package backup.
func ofBackup(err error) (string, int) {
	for _, k := range []struct {
		is   error
		code string
		exit int
	}{
		{backup.ErrNotFound, api.CodeNotFound, exitNotFound},
		{backup.ErrNoVolume, api.CodeNotFound, exitNotFound},
		{backup.ErrNotRepository, api.CodeNotFound, exitNotFound},
		{backup.ErrInvalid, api.CodeInvalid, exitUsage},
		{backup.ErrAmbiguous, api.CodeInvalid, exitUsage},
		{backup.ErrInUse, api.CodeInUse, exitInUse},
		{backup.ErrExists, api.CodeExists, exitFailed},
		{backup.ErrNotEmpty, api.CodeExists, exitFailed},
		{backup.ErrDamaged, codeDamaged, exitFailed},
		{backup.ErrMissed, codeProblems, exitFailed},
		{backup.ErrNoSpace, api.CodeNoSpace, exitFailed},
		{backup.ErrUnsupported, api.CodeUnsupported, exitFailed},
		{backup.ErrVersion, api.CodeUnsupported, exitFailed},
		{backup.ErrSecret, codeSecret, exitFailed},
		{backup.ErrLocked, codeSecret, exitFailed},
		{backup.ErrNotEncrypted, codeSecret, exitFailed},
	} {
		if errors.Is(err, k.is) {
			return k.code, k.exit
		}
	}
	return api.CodeInternal, exitFailed
}
