package connect

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"time"
)

const (
	headerBytes    = 5
	flagCompressed = 0x01
	flagEnd        = 0x02
)

// Sender writes the messages of a stream; it is for one goroutine.
type Sender struct {
	w       http.ResponseWriter
	control *http.ResponseController
	buffer  []byte
}

// Send writes one message and hands it to the network. It blocks while the reader is slow.
func (s *Sender) Send(message any) error {
	body, err := Encode(message)
	if err != nil {
		return err
	}
	return s.SendRaw(body)
}

// SendRaw is Send for a message that is JSON already.
func (s *Sender) SendRaw(body []byte) error { return s.frame(0, body) }

func (s *Sender) frame(flags byte, body []byte) error {
	s.buffer = append(s.buffer[:0], flags, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(s.buffer[1:], uint32(len(body)))
	s.buffer = append(s.buffer, body...)
	if _, err := s.w.Write(s.buffer); err != nil {
		return err
	}
	return s.control.Flush()
}

func (s *Sender) end(failure *Error) {
	message := struct {
		Error *Error `json:"error,omitempty"`
	}{failure}
	if body, err := Encode(message); err == nil {
		_ = s.frame(flagEnd, body)
	}
}

func newSender(w http.ResponseWriter) *Sender {
	w.Header().Set("Content-Type", streamType)
	// Proxies in between must pass each message on at once.
	w.Header().Set("X-Accel-Buffering", "no")
	return &Sender{w: w, control: http.NewResponseController(w)}
}

// ServerStream serves a procedure with one request and many answers. The stream ends with what handle returns.
func ServerStream[Req any](handle func(context.Context, *http.Request, *Req, *Sender) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !accepts(w, r, streamType) {
			return
		}
		sender := newSender(w)
		ctx, cancel, failure := withTimeout(r)
		defer cancel()
		if failure != nil {
			sender.end(failure)
			return
		}
		reader := Receiver{r.Body}
		body, err := reader.Next()
		if errors.Is(err, io.EOF) {
			err = Errorf(InvalidArgument, "the request holds no message")
		}
		if err == nil {
			// The rest of the body is read, so that net/http notices when the caller goes away.
			if _, rest := reader.Next(); !errors.Is(rest, io.EOF) {
				err = Errorf(InvalidArgument, "the request must hold exactly one message")
			}
		}
		req := new(Req)
		if err == nil {
			if failure := Decode(body, req); failure != nil {
				err = failure
			}
		}
		if err == nil {
			err = handle(ctx, r.WithContext(ctx), req, sender)
		}
		if err != nil {
			sender.end(AsError(ctx, err))
			return
		}
		sender.end(nil)
	})
}

// ClientStream serves a procedure with many requests and one answer.
func ClientStream[Res any](handle func(context.Context, *http.Request, *Receiver) (*Res, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !accepts(w, r, streamType) {
			return
		}
		sender := newSender(w)
		ctx, cancel, failure := withTimeout(r)
		defer cancel()
		if failure != nil {
			sender.end(failure)
			return
		}
		// A read of the body does not see the context; an old deadline ends it.
		defer context.AfterFunc(ctx, func() { _ = sender.control.SetReadDeadline(time.Unix(1, 0)) })()
		res, err := handle(ctx, r.WithContext(ctx), &Receiver{r.Body})
		if err == nil {
			err = sender.Send(res)
		}
		if err != nil {
			sender.end(AsError(ctx, err))
			return
		}
		sender.end(nil)
	})
}

// Receiver reads the messages of a stream.
type Receiver struct{ body io.Reader }

// Next returns the JSON of the next message, or io.EOF after the last one.
func (r *Receiver) Next() ([]byte, error) {
	var header [headerBytes]byte
	if _, err := io.ReadFull(r.body, header[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, Errorf(InvalidArgument, "the stream ends within a message: %v", err)
	}
	length := binary.BigEndian.Uint32(header[1:])
	switch {
	case length > MaxMessageBytes:
		return nil, Errorf(ResourceExhausted, "a message may have at most %d bytes", MaxMessageBytes)
	case header[0]&flagCompressed != 0:
		return nil, Errorf(Unimplemented, "compressed messages are not supported")
	case header[0]&flagEnd != 0:
		return nil, io.EOF
	}
	// The length is a claim: memory is taken as bytes arrive.
	body, err := io.ReadAll(io.LimitReader(r.body, int64(length)))
	if err != nil || len(body) < int(length) {
		return nil, Errorf(InvalidArgument, "the stream ends within a message")
	}
	return body, nil
}
