package connect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"
)

// MaxMessageBytes bounds one message of a caller, before it is read.
const MaxMessageBytes = 16 << 20

const (
	unaryType  = "application/json"
	streamType = "application/connect+json"
)

// Unary serves a procedure with one request and one answer.
func Unary[Req, Res any](handle func(context.Context, *http.Request, *Req) (*Res, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !accepts(w, r, unaryType) {
			return
		}
		ctx, cancel, failure := withTimeout(r)
		defer cancel()
		if failure != nil {
			WriteError(w, failure)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxMessageBytes))
		if err != nil {
			WriteError(w, readError(ctx, err))
			return
		}
		req := new(Req)
		if failure := Decode(body, req); failure != nil {
			WriteError(w, failure)
			return
		}
		res, err := handle(ctx, r.WithContext(ctx), req)
		if err != nil {
			WriteError(w, AsError(ctx, err))
			return
		}
		WriteJSON(w, http.StatusOK, res)
	})
}

// WriteJSON answers with a JSON body. Names that are not UTF-8 get replacement characters.
func WriteJSON(w http.ResponseWriter, status int, value any) {
	body, err := Encode(value)
	if err != nil {
		WriteError(w, Errorf(Internal, "the answer cannot be encoded: %v", err))
		return
	}
	w.Header().Set("Content-Type", unaryType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// Encode is json.Marshal without the escaping for HTML.
func Encode(value any) ([]byte, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n")), nil
}

// Decode parses a message. An empty one has the default value of every field, as in Protobuf; unknown fields are skipped.
func Decode(body []byte, into any) *Error {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return Errorf(InvalidArgument, "the request is no valid JSON message of this procedure: %v", err)
	}
	return nil
}

// accepts refuses what is not a POST with the JSON codec, uncompressed; it has answered when it returns false.
func accepts(w http.ResponseWriter, r *http.Request, wanted string) bool {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST")
		WriteError(w, Errorf(Unimplemented, "procedures are called with POST"))
		return false
	}
	got, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if got != wanted {
		w.Header().Set("Accept-Post", wanted)
		w.WriteHeader(http.StatusUnsupportedMediaType)
		return false
	}
	name := "Content-Encoding"
	if wanted == streamType {
		name = "Connect-Content-Encoding"
	}
	if encoding := r.Header.Get(name); encoding != "" && encoding != "identity" {
		w.Header().Set("Connect-Accept-Encoding", "identity")
		WriteError(w, Errorf(Unimplemented, "compressed messages are not supported: send them without %s", name))
		return false
	}
	return true
}

func withTimeout(r *http.Request) (context.Context, context.CancelFunc, *Error) {
	timeout, failure := Timeout(r)
	if failure != nil || timeout == 0 {
		ctx, cancel := context.WithCancel(r.Context())
		return ctx, cancel, failure
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	return ctx, cancel, nil
}

// Timeout is what the caller allows for the call; 0 when it sets no limit.
func Timeout(r *http.Request) (time.Duration, *Error) {
	text := r.Header.Get("Connect-Timeout-Ms")
	if text == "" {
		return 0, nil
	}
	timeoutMs, err := strconv.ParseUint(text, 10, 64)
	// The specification allows ten digits.
	if err != nil || len(text) > 10 {
		return 0, Errorf(InvalidArgument, "Connect-Timeout-Ms must be a whole number with at most ten digits")
	}
	// A header of 0 means that the time is up, which is not the same as no header.
	return max(time.Duration(timeoutMs)*time.Millisecond, time.Nanosecond), nil
}

func readError(ctx context.Context, err error) *Error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return Errorf(ResourceExhausted, "a message may have at most %d bytes", MaxMessageBytes)
	}
	if ctx.Err() != nil {
		return AsError(ctx, err)
	}
	return Errorf(InvalidArgument, "the request could not be read: %v", err)
}
