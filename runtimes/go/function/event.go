package function

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"reflect"
	"strings"
	"unicode/utf8"

	"thaw/protocol"
)

// decoder makes the handler's argument of what came. An error blames the caller.
type decoder func(call *protocol.Call) (reflect.Value, error)

var (
	requestType     = reflect.TypeOf(Request{})
	rawType         = reflect.TypeOf(json.RawMessage{})
	unmarshalerType = reflect.TypeOf((*json.Unmarshaler)(nil)).Elem()
)

type form int

const (
	formNull form = iota
	formJSON
	formText
	formBytes
)

// formOf says what a body is, by the table of the runtime protocol. sniffed: JSON only because it parses as such.
func formOf(contentType string, body []byte) (kind form, sniffed bool, err error) {
	if len(body) == 0 {
		return formNull, false, nil
	}
	media, _, parseErr := mime.ParseMediaType(contentType)
	if parseErr != nil {
		media = strings.ToLower(strings.TrimSpace(strings.SplitN(contentType, ";", 2)[0]))
	}
	switch {
	case media == "application/json" || strings.HasSuffix(media, "+json"):
		if isJSON(body) {
			return formJSON, false, nil
		}
		var value any
		if err := json.Unmarshal(body, &value); err != nil {
			return formJSON, false, fmt.Errorf("the body is not JSON: %w", err)
		}
		return formJSON, false, errors.New("the body is not JSON: it is not UTF-8")
	case media == "" || media == "application/x-www-form-urlencoded":
		if isJSON(body) {
			return formJSON, true, nil
		}
		return formText, false, nil
	case strings.HasPrefix(media, "text/"):
		return formText, false, nil
	default:
		return formBytes, false, nil
	}
}

// isJSON is stricter than encoding/json, which replaces what is not UTF-8.
func isJSON(body []byte) bool { return utf8.Valid(body) && json.Valid(body) }

func decoderOf(event reflect.Type) (decoder, error) {
	switch {
	case event == requestType:
		return func(call *protocol.Call) (reflect.Value, error) {
			return reflect.ValueOf(requestOf(call)), nil
		}, nil
	case event == reflect.PtrTo(requestType):
		return func(call *protocol.Call) (reflect.Value, error) {
			request := requestOf(call)
			return reflect.ValueOf(&request), nil
		}, nil
	case event == rawType:
		return decodeRaw, nil
	case event.Kind() == reflect.Interface:
		if event.NumMethod() > 0 {
			return nil, fmt.Errorf("an event cannot be decoded into the interface %s", event)
		}
		return decodeAny(event), nil
	case reflect.PtrTo(event).Implements(unmarshalerType):
		return decodeJSON(event), nil
	case event.Kind() == reflect.String:
		return decodeString(event), nil
	case event.Kind() == reflect.Slice && event.Elem().Kind() == reflect.Uint8:
		return func(call *protocol.Call) (reflect.Value, error) {
			_, _, err := formOf(call.Meta.ContentType, call.Body)
			return reflect.ValueOf(call.Body).Convert(event), err
		}, nil
	case event.Kind() == reflect.Func || event.Kind() == reflect.Chan:
		return nil, fmt.Errorf("an event cannot be decoded into %s", event)
	default:
		return decodeJSON(event), nil
	}
}

func requestOf(call *protocol.Call) Request {
	request := Request{ContentType: call.Meta.ContentType, Body: call.Body}
	if http := call.Meta.HTTP; http != nil {
		request.Method, request.Path, request.Headers = http.Method, http.Path, http.Headers
		request.Query = queryOf(http.Query)
	}
	return request
}

// queryOf takes the last of several values. What is not well formed is left out.
func queryOf(query string) map[string]string {
	values, _ := url.ParseQuery(strings.TrimPrefix(query, "?"))
	last := make(map[string]string, len(values))
	for name, all := range values {
		last[name] = all[len(all)-1]
	}
	return last
}

// decodeString gives the text of the body; of JSON that is a string, the string.
func decodeString(event reflect.Type) decoder {
	return func(call *protocol.Call) (reflect.Value, error) {
		target := reflect.New(event).Elem()
		kind, sniffed, err := formOf(call.Meta.ContentType, call.Body)
		if err != nil {
			return target, err
		}
		text := strings.ToValidUTF8(string(call.Body), "\uFFFD")
		if kind == formJSON {
			var decoded *string
			switch err := json.Unmarshal(call.Body, &decoded); {
			case err == nil && decoded != nil:
				text = *decoded
			case err == nil:
				text = ""
			case !sniffed:
				return target, doesNotFit(event, err)
			}
		}
		target.SetString(text)
		return target, nil
	}
}

func decodeRaw(call *protocol.Call) (reflect.Value, error) {
	encoded, err := jsonEvent(call)
	return reflect.ValueOf(json.RawMessage(encoded)), err
}

func decodeAny(event reflect.Type) decoder {
	return func(call *protocol.Call) (reflect.Value, error) {
		target := reflect.New(event).Elem()
		value, err := genericBody(call)
		if err != nil {
			return target, err
		}
		if http := call.Meta.HTTP; http != nil {
			value = genericEvent(http, value)
		}
		if value != nil {
			target.Set(reflect.ValueOf(value))
		}
		return target, nil
	}
}

func decodeJSON(event reflect.Type) decoder {
	return func(call *protocol.Call) (reflect.Value, error) {
		target := reflect.New(event)
		if kind := event.Kind(); call.Meta.HTTP != nil && kind == reflect.Map && event.Elem().Kind() == reflect.Interface {
			return decodeHTTPMap(call, target)
		}
		encoded, err := jsonEvent(call)
		if err != nil {
			return target.Elem(), err
		}
		if err := json.Unmarshal(encoded, target.Interface()); err != nil {
			return target.Elem(), doesNotFit(event, err)
		}
		return target.Elem(), nil
	}
}

// decodeHTTPMap keeps bytes in the body bytes, which JSON would make base64.
func decodeHTTPMap(call *protocol.Call, target reflect.Value) (reflect.Value, error) {
	body, err := genericBody(call)
	if err != nil {
		return target.Elem(), err
	}
	event := genericEvent(call.Meta.HTTP, body)
	if value := reflect.ValueOf(event); value.Type().ConvertibleTo(target.Elem().Type()) {
		return value.Convert(target.Elem().Type()), nil
	}
	encoded, err := json.Marshal(event)
	if err != nil {
		return target.Elem(), err
	}
	return target.Elem(), json.Unmarshal(encoded, target.Interface())
}

// genericBody decodes a body by the table of the runtime protocol.
func genericBody(call *protocol.Call) (any, error) {
	kind, _, err := formOf(call.Meta.ContentType, call.Body)
	if err != nil {
		return nil, err
	}
	var value any
	switch kind {
	case formJSON:
		err = json.Unmarshal(call.Body, &value)
	case formText:
		value = strings.ToValidUTF8(string(call.Body), "\uFFFD")
	case formBytes:
		value = call.Body
	}
	return value, err
}

func genericEvent(http *protocol.HTTPRequest, body any) map[string]any {
	query, headers := map[string]any{}, map[string]any{}
	for name, value := range queryOf(http.Query) {
		query[name] = value
	}
	for name, value := range http.Headers {
		headers[name] = value
	}
	return map[string]any{"method": http.Method, "path": http.Path, "query": query, "headers": headers, "body": body}
}

// jsonEvent gives the event as JSON. Bytes have no JSON form, except inside of an HTTP event, where they are base64.
func jsonEvent(call *protocol.Call) ([]byte, error) {
	kind, _, err := formOf(call.Meta.ContentType, call.Body)
	if err != nil {
		return nil, err
	}
	body := call.Body
	switch kind {
	case formNull:
		body = []byte("null")
	case formText:
		body, err = json.Marshal(string(call.Body))
	case formBytes:
		if call.Meta.HTTP == nil {
			return nil, errors.New("the function takes JSON, not " + call.Meta.ContentType)
		}
		body, err = json.Marshal(call.Body)
	}
	if err != nil || call.Meta.HTTP == nil {
		return body, err
	}
	return json.Marshal(genericEvent(call.Meta.HTTP, json.RawMessage(bytes.TrimSpace(body))))
}

func doesNotFit(event reflect.Type, err error) error {
	return fmt.Errorf("the body does not fit %s: %w", event, err)
}
