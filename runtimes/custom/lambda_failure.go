//go:build linux

package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"thaw/protocol"
)

// readFailure reads an error report. What is too large is reported by its type alone.
func readFailure(writer http.ResponseWriter, request *http.Request) (failure protocol.Failure, tooLarge bool) {
	body, err := io.ReadAll(http.MaxBytesReader(writer, request.Body, maxErrorBytes))
	if err != nil {
		failure := failureOf(nil, request.Header.Get(errorTypeHeader))
		failure.Message = "The report of the error could not be read: " + err.Error()
		return failure, true
	}
	return failureOf(body, request.Header.Get(errorTypeHeader)), false
}

// failureOf understands {"errorMessage", "errorType", "stackTrace"}, with the variants of the runtimes of AWS. Anything else
// is the message itself.
func failureOf(body []byte, kind string) protocol.Failure {
	var report struct {
		Message    any   `json:"errorMessage"`
		Type       any   `json:"errorType"`
		StackTrace any   `json:"stackTrace"`
		Trace      []any `json:"trace"`
	}
	failure := protocol.Failure{Type: kind}
	if err := json.Unmarshal(body, &report); err != nil {
		failure.Message = strings.ToValidUTF8(string(body), "\uFFFD")
	} else {
		failure.Message = text(report.Message)
		if name := text(report.Type); name != "" {
			failure.Type = name
		}
		failure.Stack = stackOf(report.StackTrace)
		if failure.Stack == "" && report.Trace != nil {
			failure.Stack = stackOf(report.Trace)
		}
	}
	if failure.Type == "" {
		failure.Type = "Error"
	}
	return failure
}

// trailerFailure is how a stream says that it failed: an error type, and the report in base64.
func trailerFailure(trailer http.Header) (protocol.Failure, bool) {
	kind := trailer.Get(errorTypeHeader)
	encoded := trailer.Get(errorBodyHeader)
	if kind == "" && encoded == "" {
		return protocol.Failure{}, false
	}
	body, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		body = []byte(encoded)
	}
	return failureOf(body, kind), true
}

// stackOf makes lines of a stack: one text, a list of texts (Python, Node.js), or a list of frames (Go).
func stackOf(stack any) string {
	list, isList := stack.([]any)
	if !isList {
		return text(stack)
	}
	lines := make([]string, 0, len(list))
	for _, entry := range list {
		if frame, isFrame := entry.(map[string]any); isFrame {
			lines = append(lines, fmt.Sprintf("%s (%s:%s)", text(frame["label"]), text(frame["path"]), text(frame["line"])))
			continue
		}
		lines = append(lines, strings.TrimSuffix(text(entry), "\n"))
	}
	return strings.Join(lines, "\n")
}

func text(value any) string {
	switch value := value.(type) {
	case nil:
		return ""
	case string:
		return value
	default:
		encoded, _ := json.Marshal(value)
		return string(encoded)
	}
}
