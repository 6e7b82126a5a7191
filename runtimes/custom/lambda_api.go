//go:build linux

package main

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"thaw/protocol"
)

const (
	apiPrefix       = "/2018-06-01/runtime/"
	errorTypeHeader = "Lambda-Runtime-Function-Error-Type"
	errorBodyHeader = "Lambda-Runtime-Function-Error-Body"
	modeHeader      = "Lambda-Runtime-Function-Response-Mode"

	// An error report is cut in the end anyway.
	maxErrorBytes = 1 << 20
)

// api is the Lambda Runtime API, as AWS documents it for custom runtimes.
func (l *lambda) api() http.Handler {
	address := l.listener.Addr().String()
	return http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		header := request.Header
		// Where the network is that of the host, pages in a browser reach this port too; no program sends these.
		if request.Host != address || header.Get("Origin") != "" || header.Get("Sec-Fetch-Site") != "" {
			refuse(writer, http.StatusForbidden, "Forbidden", "This is for the program of the function only.")
			return
		}
		path := strings.TrimPrefix(request.URL.Path, apiPrefix)
		id, what, _ := strings.Cut(strings.TrimPrefix(path, "invocation/"), "/")
		switch {
		case path == request.URL.Path:
			refuse(writer, http.StatusNotFound, "NotFound", "There is nothing at this path.")
		case path == "invocation/next" && request.Method == http.MethodGet:
			l.handleNext(writer, request)
		case path == "init/error" && request.Method == http.MethodPost:
			l.handleInitError(writer, request)
		case strings.HasPrefix(path, "invocation/") && what == "response" && request.Method == http.MethodPost:
			l.handleResponse(writer, request, id)
		case strings.HasPrefix(path, "invocation/") && what == "error" && request.Method == http.MethodPost:
			l.handleError(writer, request, id)
		default:
			refuse(writer, http.StatusNotFound, "NotFound", "There is nothing at this path.")
		}
	})
}

func (l *lambda) handleNext(writer http.ResponseWriter, request *http.Request) {
	wish := l.ask()
	if wish == nil {
		refuse(writer, http.StatusForbidden, "InvalidStateTransition", "The invocation before this one has no response yet.")
		return
	}
	for {
		var call *protocol.Call
		select {
		case <-request.Context().Done():
			l.give(wish, nil)
			return
		case call = <-l.calls:
		}
		event, failure := eventOf(call, l.function)
		if failure != nil {
			call.Fail(*failure)
			continue
		}
		if !l.give(wish, call) {
			go l.invoke(call)
			return
		}
		go l.watch(call)
		header := writer.Header()
		header.Set("Content-Type", contentJSON)
		header.Set("Content-Length", strconv.Itoa(len(event)))
		header.Set("Lambda-Runtime-Aws-Request-Id", call.Meta.ID)
		header.Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(call.Meta.DeadlineMs, 10))
		header.Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:local:000000000000:function:"+l.function)
		_, _ = writer.Write(event)
		return
	}
}

func (l *lambda) handleInitError(writer http.ResponseWriter, request *http.Request) {
	failure, tooLarge := readFailure(writer, request)
	switch {
	case tooLarge:
		refuseTooLarge(writer)
	case l.failLoading(failure):
		accept(writer)
	default:
		refuse(writer, http.StatusForbidden, "InvalidStateTransition", "The function has been loaded already.")
	}
}

func (l *lambda) handleError(writer http.ResponseWriter, request *http.Request, id string) {
	call := l.answer(id)
	if call == nil {
		refuseID(writer)
		return
	}
	failure, tooLarge := readFailure(writer, request)
	l.finish(call, func() { call.Fail(failure) })
	if tooLarge {
		refuseTooLarge(writer)
		return
	}
	accept(writer)
}

func accept(writer http.ResponseWriter) {
	reply(writer, http.StatusAccepted, map[string]string{"status": "OK"})
}

func refuse(writer http.ResponseWriter, status int, kind, message string) {
	reply(writer, status, map[string]string{"errorType": kind, "errorMessage": message})
}

func refuseID(writer http.ResponseWriter) {
	refuse(writer, http.StatusBadRequest, "InvalidRequestID", "No invocation of this id waits for a response.")
}

func refuseTooLarge(writer http.ResponseWriter) {
	refuse(writer, http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "The response is larger than allowed.")
}

func reply(writer http.ResponseWriter, status int, message map[string]string) {
	body, _ := json.Marshal(message)
	writer.Header().Set("Content-Type", contentJSON)
	writer.Header().Set("Content-Length", strconv.Itoa(len(body)))
	writer.WriteHeader(status)
	_, _ = writer.Write(body)
}
