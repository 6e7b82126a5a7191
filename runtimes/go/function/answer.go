package function

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"thaw/protocol"
)

const (
	contentJSON  = "application/json"
	contentLines = "application/x-ndjson"
	contentText  = "text/plain; charset=utf-8"
	contentBytes = "application/octet-stream"
)

var (
	streamType    = reflect.TypeOf(Stream(nil))
	marshalerType = reflect.TypeOf((*json.Marshaler)(nil)).Elem()
)

// reply is an answer, encoded or still to be streamed.
type reply struct {
	meta   protocol.ResultMeta
	body   []byte
	stream Stream
}

// encodeAnswer follows the table of the runtime protocol.
func encodeAnswer(value any, byHTTP bool) (reply, error) {
	switch answer := value.(type) {
	case Response:
		return encodeResponse(answer.plain())
	case *Response:
		if answer != nil {
			return encodeResponse(answer.plain())
		}
	case Stream:
		if answer == nil {
			return reply{}, errors.New("the handler returned a nil function.Stream")
		}
		return reply{stream: answer}, nil
	}
	contentType, body, err := encodeValue(value)
	if err != nil {
		return reply{}, err
	}
	if byHTTP && contentType == contentJSON {
		if found, ok := responseOf(value, body); ok {
			return encodeResponse(found)
		}
	}
	return reply{meta: protocol.ResultMeta{ContentType: contentType}, body: body}, nil
}

func encodeValue(value any) (contentType string, body []byte, err error) {
	switch plain := value.(type) {
	case string:
		return contentText, []byte(strings.ToValidUTF8(plain, "\uFFFD")), nil
	case []byte:
		return contentBytes, plain, nil
	}
	if kind := reflect.TypeOf(value); kind != nil && !kind.Implements(marshalerType) {
		of := reflect.ValueOf(value)
		switch {
		case kind.Kind() == reflect.String:
			return contentText, []byte(strings.ToValidUTF8(of.String(), "\uFFFD")), nil
		case kind.Kind() == reflect.Slice && kind.Elem().Kind() == reflect.Uint8:
			return contentBytes, of.Bytes(), nil
		}
	}
	body, err = encodeJSON(value)
	return contentJSON, body, err
}

// encodeJSON leaves <, > and & as they are, unlike json.Marshal: answers are not pasted into HTML.
func encodeJSON(value any) ([]byte, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buffer.Bytes(), []byte{'\n'}), nil
}

// response is a Response, or an object that means one.
type response struct {
	status  int
	headers map[string]any
	body    any
}

// responseOf recognises an object with an integer status, however the handler made it.
func responseOf(value any, encoded []byte) (response, bool) {
	if len(encoded) == 0 || encoded[0] != '{' {
		return response{}, false
	}
	var object struct {
		Status     *int            `json:"status"`
		StatusCode *int            `json:"statusCode"`
		Headers    map[string]any  `json:"headers"`
		Body       json.RawMessage `json:"body"`
		Base64     bool            `json:"isBase64Encoded"`
	}
	if json.Unmarshal(encoded, &object) != nil {
		return response{}, false
	}
	status := object.Status
	if status == nil {
		status = object.StatusCode
	}
	if status == nil {
		return response{}, false
	}
	found := response{status: *status, headers: object.Headers, body: object.Body}
	var text *string
	if object.Body == nil {
		found.body = ""
	} else if json.Unmarshal(object.Body, &text) == nil && text != nil {
		found.body = *text
		if object.Base64 {
			if decoded, err := base64.StdEncoding.DecodeString(*text); err == nil {
				found.body = decoded
			}
		}
	}
	// In a map the body is still what it was before JSON made text of bytes.
	if generic, ok := value.(map[string]any); ok {
		if raw, ok := generic["body"].([]byte); ok {
			found.body = raw
		}
	}
	return found, true
}

func (answer Response) plain() response {
	headers := make(map[string]any, len(answer.Headers)+1)
	for name, value := range answer.Headers {
		headers[name] = value
	}
	if len(answer.Cookies) > 0 {
		headers["set-cookie"] = answer.Cookies
	}
	status := answer.Status
	if status == 0 {
		status = 200
	}
	return response{status: status, headers: headers, body: answer.Body}
}

func encodeResponse(answer response) (reply, error) {
	if answer.status < 100 || answer.status > 599 {
		return reply{}, fmt.Errorf("%d is not an HTTP status", answer.status)
	}
	encoded, err := encodeAnswer(answer.body, false)
	if err != nil {
		return reply{}, err
	}
	encoded.meta.Status = answer.status
	headers := make(map[string]any, len(answer.headers))
	for name, value := range answer.headers {
		values, err := headerValues(name, value)
		if err != nil {
			return reply{}, err
		}
		switch {
		case strings.EqualFold(name, "content-type") && len(values) > 0:
			encoded.meta.ContentType = values[0]
		case len(values) == 1:
			headers[strings.ToLower(name)] = values[0]
		case len(values) > 1:
			headers[strings.ToLower(name)] = values
		}
	}
	encoded.meta.Headers = headers
	if len(encoded.meta.ContentType) > 256 {
		return reply{}, fmt.Errorf("the content type %.64s… is too long", encoded.meta.ContentType)
	}
	if encoded.meta.Bytes() > protocol.MaxMetaBytes {
		return reply{}, fmt.Errorf("the headers have more than %d bytes", protocol.MaxMetaBytes)
	}
	return encoded, nil
}

// headerValues checks what a worker would refuse: it treats a malformed answer as a broken instance.
func headerValues(name string, value any) ([]string, error) {
	var values []string
	switch given := value.(type) {
	case string:
		values = []string{given}
	case []string:
		values = given
	case []any:
		for _, each := range given {
			values = append(values, fmt.Sprint(each))
		}
	default:
		values = []string{fmt.Sprint(given)}
	}
	if name == "" || len(name) > 256 || strings.IndexFunc(name, notInName) >= 0 {
		return nil, fmt.Errorf("%.64q is not a name of a header", name)
	}
	if len(values) > 64 {
		return nil, fmt.Errorf("the header %s has more than 64 values", name)
	}
	for _, each := range values {
		if len(each) > 8192 {
			return nil, fmt.Errorf("the header %s is longer than 8192 bytes", name)
		}
		if strings.IndexFunc(each, notPrintable) >= 0 {
			return nil, fmt.Errorf("the header %s has a character that is not printable ASCII", name)
		}
	}
	return values, nil
}

// notInName tells what may not be in a token of RFC 9110, section 5.6.2.
func notInName(char rune) bool {
	switch {
	case char >= 'a' && char <= 'z', char >= 'A' && char <= 'Z', char >= '0' && char <= '9':
		return false
	default:
		return !strings.ContainsRune("!#$%&'*+-.^_`|~", char)
	}
}

func notPrintable(char rune) bool { return char < 0x20 || char > 0x7e }

// sendStream runs the user's stream. The answer begins with its first piece, so that an error before it is just a failure.
func sendStream(call *protocol.Call, answer reply) error {
	begun, asLines := false, false
	begin := func(contentType string) {
		begun = true
		if answer.meta.ContentType == "" {
			answer.meta.ContentType = contentType
		}
		call.Begin(answer.meta)
	}
	err := answer.stream(func(chunk any) error {
		contentType, piece, err := encodeValue(chunk)
		if err != nil {
			return err
		}
		if !begun {
			asLines = contentType == contentJSON
			if asLines {
				contentType = contentLines
			}
			begin(contentType)
		}
		switch {
		case asLines && contentType != contentJSON && contentType != contentLines:
			// Of a stream of JSON, text and bytes are values like any other.
			if piece, err = encodeJSON(chunk); err != nil {
				return err
			}
			piece = append(piece, '\n')
		case asLines:
			piece = append(piece, '\n')
		case contentType == contentJSON:
			return fmt.Errorf("the stream began with text or bytes and cannot go on with %T", chunk)
		}
		return call.Chunk(piece)
	})
	if err == nil && !begun {
		begin(contentLines)
	}
	return err
}
