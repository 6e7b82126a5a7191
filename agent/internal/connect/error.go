// Package connect implements the part of the Connect protocol that sandbox clients use: unary calls and
// streams over HTTP/1.1 with the JSON codec. See https://connectrpc.com/docs/protocol.
package connect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// Code is an error code of the Connect protocol.
type Code string

const (
	Canceled           Code = "canceled"
	Unknown            Code = "unknown"
	InvalidArgument    Code = "invalid_argument"
	DeadlineExceeded   Code = "deadline_exceeded"
	NotFound           Code = "not_found"
	AlreadyExists      Code = "already_exists"
	PermissionDenied   Code = "permission_denied"
	ResourceExhausted  Code = "resource_exhausted"
	FailedPrecondition Code = "failed_precondition"
	Unimplemented      Code = "unimplemented"
	Internal           Code = "internal"
	Unavailable        Code = "unavailable"
	DataLoss           Code = "data_loss"
	Unauthenticated    Code = "unauthenticated"
)

// httpStatuses is the table of the protocol's specification.
var httpStatuses = map[Code]int{
	Canceled: 499, Unknown: 500, InvalidArgument: 400, DeadlineExceeded: 504, NotFound: 404, AlreadyExists: 409,
	PermissionDenied: 403, ResourceExhausted: 429, FailedPrecondition: 400, Unimplemented: 501, Internal: 500,
	Unavailable: 503, DataLoss: 500, Unauthenticated: 401,
}

// Error is an error that reaches the caller with its code and text.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Details say more to who knows their types; other callers ignore them.
	Details []Detail `json:"details,omitempty"`
}

// Detail is a message of protocol buffers, by its full name; Value is it in base64, and empty for one without fields.
type Detail struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

func (e *Error) Error() string { return e.Message }

// HTTPStatus is the status of a unary answer with this error.
func (e *Error) HTTPStatus() int {
	if status, ok := httpStatuses[e.Code]; ok {
		return status
	}
	return http.StatusInternalServerError
}

// Errorf makes an Error; the message is for people.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// AsError turns any error into one with a code; ctx tells why a call was given up.
func AsError(ctx context.Context, err error) *Error {
	var coded *Error
	if errors.As(err, &coded) {
		return coded
	}
	if ctx.Err() != nil {
		if errors.As(context.Cause(ctx), &coded) {
			return coded
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return Errorf(DeadlineExceeded, "the call took longer than its Connect-Timeout-Ms")
		}
		return Errorf(Canceled, "the caller gave up")
	}
	return &Error{Code: Internal, Message: err.Error()}
}

// WriteError answers a unary call with an error.
func WriteError(w http.ResponseWriter, err *Error) {
	body, _ := json.Marshal(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(err.HTTPStatus())
	_, _ = w.Write(body)
}
