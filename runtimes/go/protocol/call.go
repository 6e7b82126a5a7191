package protocol

import "errors"

// ErrCancelled is what Chunk returns when nobody waits for the answer any more.
var ErrCancelled = errors.New("the invocation was cancelled")

var cancelledFailure = Failure{Reason: ReasonCancelled, Type: "Cancelled", Message: "The invocation was cancelled."}

// Call is one invocation. It ends with exactly one of Answer, End and Fail; whatever is said of a cancelled call, the
// worker is told that it was cancelled.
type Call struct {
	Meta   InvokeMeta
	Body   []byte
	Stream uint32

	session   *Session
	cancelled chan struct{}
}

// Cancelled is closed when nobody waits for the answer any more.
func (call *Call) Cancelled() <-chan struct{} { return call.cancelled }

// Answer ends the call with a whole answer, of any size.
func (call *Call) Answer(meta ResultMeta, body []byte) {
	if len(body) > PieceBytes {
		call.Begin(meta)
		if call.Chunk(body) == nil {
			call.End()
		} else {
			call.Fail(Failure{})
		}
		return
	}
	meta.More = false
	if !call.isCancelled() && call.session.release(call) {
		call.session.send(frameResult, call.Stream, joinMeta(meta), body)
		return
	}
	call.Fail(Failure{})
}

// Begin starts an answer that Chunk continues.
func (call *Call) Begin(meta ResultMeta) {
	meta.More = true
	call.session.send(frameResult, call.Stream, joinMeta(meta))
}

// Chunk sends more of an answer. It blocks while the worker is slower than the code.
func (call *Call) Chunk(bytes []byte) error {
	for len(bytes) > 0 {
		if call.isCancelled() {
			return ErrCancelled
		}
		size := len(bytes)
		if size > PieceBytes {
			size = PieceBytes
		}
		call.session.send(frameChunk, call.Stream, bytes[:size])
		bytes = bytes[size:]
	}
	return nil
}

// End ends an answer that Begin started.
func (call *Call) End() {
	if call.isCancelled() {
		call.Fail(Failure{})
	} else if call.session.release(call) {
		call.session.send(frameEnd, call.Stream)
	}
}

// Fail ends the call without an answer, or without the rest of it.
func (call *Call) Fail(failure Failure) {
	if failure.Reason == "" {
		failure.Reason = ReasonError
	}
	if call.isCancelled() {
		failure = cancelledFailure
	}
	if call.session.release(call) {
		call.session.sendJSON(frameFailed, call.Stream, failure.bounded())
	}
}

func (call *Call) isCancelled() bool {
	select {
	case <-call.cancelled:
		return true
	default:
		return false
	}
}
