//go:build linux

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"thaw/protocol"
)

const (
	// An answer that describes an HTTP answer is read as a whole; that of Lambda may have 6 MB.
	maxDescribedBytes = 8 << 20
	// A stream whose head is a JSON description of an HTTP answer, ended by eight zero bytes.
	describedStream = "application/vnd.awslambda.http-integration-response"
	maxPreludeBytes = 64 << 10
	// Of a response that nobody takes; what is longer has its connection closed.
	maxDrainedBytes = 256 << 20
)

var errTooLarge = errors.New("too large")

func (l *lambda) handleResponse(writer http.ResponseWriter, request *http.Request, id string) {
	call := l.answer(id)
	if call == nil {
		refuseID(writer)
		return
	}
	var err error
	if request.Header.Get(modeHeader) == "streaming" {
		err = l.passStream(call, request)
	} else {
		err = l.whole(call, request)
	}
	switch {
	case err == nil:
		accept(writer)
	case errors.Is(err, errTooLarge), errors.Is(err, protocol.ErrCancelled):
		// Programs hear the answer only once they have sent everything.
		_, _ = io.CopyN(io.Discard, request.Body, maxDrainedBytes)
		refuseTooLarge(writer)
	default:
		refuse(writer, http.StatusBadRequest, "InvalidResponse", err.Error())
	}
}

// whole passes on an answer that is complete when it is sent. A large one goes on as it comes, all the same.
func (l *lambda) whole(call *protocol.Call, request *http.Request) error {
	limit := maxHeldBytes
	if call.Meta.HTTP != nil {
		limit = maxDescribedBytes
	}
	held, err := io.ReadAll(io.LimitReader(request.Body, int64(limit)+1))
	if err != nil {
		return l.broken(call, err)
	}
	contentType := request.Header.Get("Content-Type")
	if kind := mediaType(contentType); kind == "" || kind == formType {
		contentType = contentTypeOf(held)
	}
	if len(held) <= limit {
		meta, body, err := described(call, validContentType(contentType), held)
		if err != nil {
			return l.fail(call, protocol.Failure{Type: "InvalidResponse", Message: err.Error()}, err)
		}
		l.finish(call, func() { call.Answer(meta, body) })
		return nil
	}
	if call.Meta.HTTP != nil {
		message := fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", limit)
		return l.fail(call, protocol.Failure{Type: "Function.ResponseSizeTooLarge", Message: message}, errTooLarge)
	}
	call.Begin(protocol.ResultMeta{ContentType: validContentType(contentType)})
	return l.pass(call, io.MultiReader(bytes.NewReader(held), request.Body), request)
}

// passStream passes on an answer while the program makes it.
func (l *lambda) passStream(call *protocol.Call, request *http.Request) error {
	body := io.Reader(request.Body)
	meta := protocol.ResultMeta{ContentType: validContentType(request.Header.Get("Content-Type"))}
	if meta.ContentType == "" {
		meta.ContentType = contentBytes
	}
	// Until there is something to pass on, a failure can still be told as one.
	first := make([]byte, 64<<10)
	count, err := body.Read(first)
	for count == 0 && err == nil {
		count, err = body.Read(first)
	}
	first = first[:count]
	if err == nil || err == io.EOF {
		body = io.MultiReader(bytes.NewReader(first), body)
		if mediaType(meta.ContentType) == describedStream && count > 0 {
			if body, err = prelude(call, body, &meta); err != nil {
				return l.fail(call, protocol.Failure{Type: "InvalidResponse", Message: err.Error()}, err)
			}
		}
	} else {
		return l.broken(call, err)
	}
	if count == 0 {
		if failure, failed := trailerFailure(request.Trailer); failed {
			return l.fail(call, failure, nil)
		}
		l.finish(call, func() { call.Answer(meta, nil) })
		return nil
	}
	call.Begin(meta)
	return l.pass(call, body, request)
}

// pass sends pieces as they come, until the body ends, and then what its trailers say.
func (l *lambda) pass(call *protocol.Call, body io.Reader, request *http.Request) error {
	buffer := make([]byte, 64<<10)
	for {
		count, err := body.Read(buffer)
		if sendErr := call.Chunk(buffer[:count]); sendErr != nil {
			return l.fail(call, protocol.Failure{}, sendErr)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return l.broken(call, err)
		}
	}
	if failure, failed := trailerFailure(request.Trailer); failed {
		return l.fail(call, failure, nil)
	}
	l.finish(call, call.End)
	return nil
}

func (l *lambda) fail(call *protocol.Call, failure protocol.Failure, err error) error {
	l.finish(call, func() { call.Fail(failure) })
	return err
}

// broken: the program's own connection ended before its answer did.
func (l *lambda) broken(call *protocol.Call, err error) error {
	message := fmt.Sprintf("The response broke off: %v.", err)
	return l.fail(call, protocol.Failure{Type: "Runtime.TruncatedResponse", Message: message}, err)
}

// prelude reads the head of a described stream, and returns what follows it.
func prelude(call *protocol.Call, body io.Reader, meta *protocol.ResultMeta) (io.Reader, error) {
	end := make([]byte, 8)
	var held []byte
	buffer := make([]byte, 4<<10)
	for {
		if at := bytes.Index(held, end); at >= 0 {
			head, err := parseDescription(held[:at])
			if err != nil {
				return nil, err
			}
			*meta, err = head.meta(contentBytes)
			if call.Meta.HTTP == nil {
				meta.Status, meta.Headers = 0, nil
			}
			return io.MultiReader(bytes.NewReader(held[at+len(end):]), body), err
		}
		if len(held) > maxPreludeBytes {
			return nil, fmt.Errorf("the head of the response is larger than %d bytes", maxPreludeBytes)
		}
		count, err := body.Read(buffer)
		held = append(held, buffer[:count]...)
		if err != nil && bytes.Index(held, end) < 0 {
			return nil, fmt.Errorf("the response ends within its head: %w", err)
		}
	}
}

// description is an HTTP answer as a value, as Lambda functions behind a URL return it.
type description struct {
	StatusCode        *json.Number        `json:"statusCode"`
	Headers           map[string]any      `json:"headers"`
	MultiValueHeaders map[string][]string `json:"multiValueHeaders"`
	Cookies           []string            `json:"cookies"`
	Body              *string             `json:"body"`
	IsBase64Encoded   bool                `json:"isBase64Encoded"`
}

// described takes an answer to an HTTP request for what it describes; any other answer is taken as it is.
func described(call *protocol.Call, contentType string, body []byte) (protocol.ResultMeta, []byte, error) {
	plain := protocol.ResultMeta{ContentType: contentType}
	if call.Meta.HTTP == nil {
		return plain, body, nil
	}
	head, err := parseDescription(body)
	if err != nil || head.StatusCode == nil {
		return plain, body, nil
	}
	meta, err := head.meta(contentJSON)
	if err != nil || head.Body == nil {
		return meta, nil, err
	}
	if !head.IsBase64Encoded {
		return meta, []byte(*head.Body), nil
	}
	decoded, err := base64.StdEncoding.DecodeString(*head.Body)
	if err != nil {
		return meta, nil, errors.New("isBase64Encoded is true, but body is not base64")
	}
	return meta, decoded, nil
}

func parseDescription(data []byte) (description, error) {
	var head description
	if err := json.Unmarshal(data, &head); err != nil {
		return head, fmt.Errorf("the head of the response is not what it should be: %w", err)
	}
	return head, nil
}

// meta checks what the worker would refuse.
func (head description) meta(contentType string) (protocol.ResultMeta, error) {
	meta := protocol.ResultMeta{ContentType: contentType, Headers: map[string]any{}}
	if head.StatusCode != nil {
		status, err := head.StatusCode.Int64()
		if err != nil || status < 100 || status > 599 {
			return meta, fmt.Errorf("statusCode %s is no status of HTTP", *head.StatusCode)
		}
		meta.Status = int(status)
	}
	for name, value := range head.Headers {
		meta.Headers[strings.ToLower(name)] = text(value)
	}
	for name, values := range head.MultiValueHeaders {
		meta.Headers[strings.ToLower(name)] = values
	}
	if len(head.Cookies) > 0 {
		meta.Headers["set-cookie"] = head.Cookies
	}
	if own, isText := meta.Headers["content-type"].(string); isText {
		meta.ContentType = validContentType(own)
	}
	delete(meta.Headers, "content-type")
	for name, value := range meta.Headers {
		values, isList := value.([]string)
		if !isList {
			values = []string{value.(string)}
		}
		for _, value := range values {
			if len(value) > 8192 || len(name) > 256 || len(values) > 64 {
				return meta, fmt.Errorf("the header %s is too large", protocol.CutText(name, 256))
			}
		}
	}
	if meta.Bytes() > protocol.MaxMetaBytes {
		return meta, errors.New("the headers are too large")
	}
	return meta, nil
}

// validContentType is the type if the worker takes it, else that of bytes.
func validContentType(contentType string) string {
	if len(contentType) > 256 {
		return contentBytes
	}
	for _, char := range contentType {
		if char < 0x20 || char > 0x7e {
			return contentBytes
		}
	}
	return contentType
}
