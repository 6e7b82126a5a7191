//go:build linux

package main

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"thaw/protocol"
)

// eventOf makes the event of an invocation. Events of Lambda are JSON: other text becomes a JSON string, and what is neither
// is passed on as it is.
func eventOf(call *protocol.Call, function string) ([]byte, *protocol.Failure) {
	if call.Meta.HTTP != nil {
		return httpEvent(call, function), nil
	}
	if len(call.Body) == 0 {
		return []byte("{}"), nil
	}
	contentType := mediaType(call.Meta.ContentType)
	isJSON := json.Valid(call.Body)
	switch {
	case isJSON:
		return call.Body, nil
	case contentType == contentJSON || strings.HasSuffix(contentType, "+json"):
		return nil, &protocol.Failure{Reason: protocol.ReasonInvalidPayload, Type: "InvalidRequestContent", Message: "not valid JSON"}
	case contentType == "" || contentType == formType || strings.HasPrefix(contentType, "text/"):
		event, _ := json.Marshal(strings.ToValidUTF8(string(call.Body), "\uFFFD"))
		return event, nil
	default:
		return call.Body, nil
	}
}

// What programs such as curl send by themselves.
const formType = "application/x-www-form-urlencoded"

// httpEvent is the event of Lambda function URLs (payload format 2.0).
func httpEvent(call *protocol.Call, function string) []byte {
	request := call.Meta.HTTP
	headers := request.Headers
	now := time.Now().UTC()
	event := map[string]any{
		"version": "2.0", "routeKey": "$default",
		"rawPath": request.Path, "rawQueryString": request.Query,
		"headers":         headers,
		"isBase64Encoded": false,
		"requestContext": map[string]any{
			"accountId": "anonymous", "apiId": function, "domainName": headers["host"], "domainPrefix": function,
			"requestId": call.Meta.ID, "routeKey": "$default", "stage": "$default",
			"time": now.Format("02/Jan/2006:15:04:05 -0700"), "timeEpoch": now.UnixMilli(),
			"http": map[string]string{
				"method": request.Method, "path": request.Path, "protocol": "HTTP/1.1",
				"sourceIp": "127.0.0.1", "userAgent": headers["user-agent"],
			},
		},
	}
	if cookies := headers["cookie"]; cookies != "" {
		event["cookies"] = strings.Split(cookies, "; ")
	}
	if query, err := url.ParseQuery(request.Query); err == nil && len(query) > 0 {
		parameters := map[string]string{}
		for name, values := range query {
			parameters[name] = strings.Join(values, ",")
		}
		event["queryStringParameters"] = parameters
	}
	if len(call.Body) > 0 {
		if isTextual(mediaType(call.Meta.ContentType)) && utf8.Valid(call.Body) {
			event["body"] = string(call.Body)
		} else {
			event["body"] = base64.StdEncoding.EncodeToString(call.Body)
			event["isBase64Encoded"] = true
		}
	}
	encoded, _ := json.Marshal(event)
	return encoded
}

// mediaType is a content type without its parameters.
func mediaType(contentType string) string {
	name, _, _ := strings.Cut(contentType, ";")
	return strings.ToLower(strings.TrimSpace(name))
}

func isTextual(contentType string) bool {
	switch contentType {
	case "", contentJSON, formType, "application/xml", "application/javascript":
		return true
	}
	return strings.HasPrefix(contentType, "text/") || strings.HasSuffix(contentType, "+json") || strings.HasSuffix(contentType, "+xml")
}
