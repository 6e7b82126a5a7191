package function

import "encoding/json"

// Request is an event as it came, with the HTTP request where one invoked the function; otherwise only Body and
// ContentType are set.
type Request struct {
	Method string
	// Path begins with / behind the function's name.
	Path  string
	Query map[string]string
	// Headers have names in lower case.
	Headers     map[string]string
	ContentType string
	Body        []byte
}

// JSON decodes the body.
func (request Request) JSON(value any) error { return json.Unmarshal(request.Body, value) }

// Response is an answer with an HTTP status and headers. Invocations that do not come by HTTP receive its body.
type Response struct {
	// Status is 200 when zero.
	Status int
	// Headers may name the content type; without it, the body decides.
	Headers map[string]string
	// Cookies are the values of Set-Cookie headers.
	Cookies []string
	// Body may be all that a handler may return, also a Stream.
	Body any
}

// Stream is an answer in pieces, each sent when it is yielded: text, bytes, or else JSON, one value a line. The first piece
// decides which. An error from yield says that nobody takes the answer any more; return it.
//
//	return function.Stream(func(yield func(chunk any) error) error {
//		for row := range rows {
//			if err := yield(row); err != nil {
//				return err
//			}
//		}
//		return nil
//	}), nil
type Stream func(yield func(chunk any) error) error
