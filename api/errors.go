package api

import (
	"errors"
	"net/http"
	"strings"
)

// Codes of [Error], stable words for programs.
const (
	CodeInvalid     = "invalid"     // the request makes no sense; nothing was tried
	CodeNotFound    = "not_found"   // no such pool, volume or device
	CodeExists      = "exists"      // the name is taken
	CodeBusy        = "busy"        // another operation or a swap is under way
	CodeInUse       = "in_use"      // somebody holds a device; Holders names them
	CodeGeneration  = "generation"  // the position has another generation than expected
	CodeNoSpace     = "no_space"    // not enough free extents
	CodeQuarantined = "quarantined" // the position is in quarantine
	CodeDegraded    = "degraded"    // extents of the volume are on a missing member
	CodeUnsupported = "unsupported" // the kernel can't do this
	CodeInternal    = "internal"    // something failed below
	CodeUnavailable = "unavailable" // the daemon does not answer
	CodeDenied      = "denied"      // the caller has no right to it
)

// Error is what the API answers when something does not work. It is the body
// of every response with a status of 400 or more.
type Error struct {
	Status  int      `json:"status" doc:"HTTP status"`
	Code    string   `json:"code" doc:"stable word for programs" example:"in_use"`
	Message string   `json:"message" doc:"what was attempted, on what, and what went wrong"`
	Remedy  string   `json:"remedy,omitempty" doc:"what to do about it"`
	Holders []Holder `json:"holders,omitempty" doc:"who is in the way"`
}

// Error joins message, holders and remedy to one text of several lines.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	for _, h := range e.Holders {
		b.WriteString("\n  " + h.Device + ": " + h.Detail)
	}
	if e.Remedy != "" {
		b.WriteString("\n  " + e.Remedy)
	}
	return b.String()
}

// GetStatus lets the HTTP server answer with the error's own status.
func (e *Error) GetStatus() int {
	if e.Status == 0 {
		return StatusOf(e.Code)
	}
	return e.Status
}

// StatusOf returns the HTTP status that goes with a code.
func StatusOf(code string) int {
	switch code {
	case CodeInvalid:
		return http.StatusUnprocessableEntity
	case CodeDenied:
		return http.StatusForbidden
	case CodeNotFound:
		return http.StatusNotFound
	case CodeExists, CodeBusy, CodeInUse, CodeGeneration, CodeQuarantined, CodeDegraded:
		return http.StatusConflict
	case CodeNoSpace:
		return http.StatusInsufficientStorage
	case CodeUnsupported:
		return http.StatusNotImplemented
	case CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// CodeOf returns the code of an error that came from the API, or
// [CodeInternal] for any other error.
func CodeOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
