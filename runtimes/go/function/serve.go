package function

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"time"

	"thaw/protocol"
)

// serve runs one invocation, on its own goroutine.
func (p *program) serve(call *protocol.Call) {
	<-p.prepared
	// What is left to say if the handler ends its goroutine.
	settle := func() {
		call.Fail(protocol.Failure{Type: "runtime.Goexit", Message: "The handler ended its goroutine without an answer."})
	}
	p.output.enter(call.Stream)
	defer func() {
		p.output.leave(call.Stream)
		settle()
	}()
	settle = p.attempt(call)
}

// attempt runs everything that is the user's, and returns how the call ends.
func (p *program) attempt(call *protocol.Call) (settle func()) {
	fail := func(failure protocol.Failure) func() { return func() { call.Fail(failure) } }
	defer func() {
		// With the semantics of Go before 1.21, panic(nil) recovers as nil.
		if reason := recover(); reason != nil || settle == nil {
			settle = fail(panicked(reason))
		}
	}()
	ctx, stop := p.contextOf(call)
	defer stop()
	var event reflect.Value
	if p.handler.decode != nil {
		var err error
		if event, err = p.handler.decode(call); err != nil {
			return fail(protocol.Failure{
				Reason: protocol.ReasonInvalidPayload, Type: "PayloadError", Message: "The payload cannot be decoded: " + err.Error(),
			})
		}
	}
	value, err := p.handler.call(ctx, event)
	if err != nil {
		return fail(failed(err))
	}
	answer, err := encodeAnswer(value, call.Meta.HTTP != nil)
	if err != nil {
		return fail(failed(fmt.Errorf("the answer cannot be encoded: %w", err)))
	}
	if answer.stream == nil {
		return func() { call.Answer(answer.meta, answer.body) }
	}
	if err := sendStream(call, answer); err != nil {
		return fail(failed(err))
	}
	return call.End
}

func (p *program) contextOf(call *protocol.Call) (*Context, func()) {
	parent, cancel := context.WithCancel(context.Background())
	stop := cancel
	if call.Meta.DeadlineMs > 0 {
		var release func()
		parent, release = context.WithDeadline(parent, time.UnixMilli(call.Meta.DeadlineMs))
		stop = func() {
			release()
			cancel()
		}
	}
	go func() {
		select {
		case <-call.Cancelled():
			cancel()
		case <-parent.Done():
		}
	}()
	return &Context{
		Context:         parent,
		InvocationID:    call.Meta.ID,
		Attempt:         call.Meta.Attempt,
		FunctionName:    p.load.Function,
		FunctionVersion: p.load.Version,
		MemoryLimitMib:  p.load.MemoryMib,
	}, stop
}

// failed describes an error. Its type is that of the first in its chain that says more than that it has a text.
func failed(err error) protocol.Failure {
	name := fmt.Sprintf("%T", err)
	for cause := err; cause != nil; cause = errors.Unwrap(cause) {
		if specific := fmt.Sprintf("%T", cause); specific != "*errors.errorString" && specific != "*fmt.wrapError" {
			name = specific
			break
		}
	}
	return protocol.Failure{Type: name, Message: err.Error()}
}

func panicked(reason any) protocol.Failure {
	failure := protocol.Failure{Type: "panic", Message: fmt.Sprint(reason), Stack: panicStack()}
	if err, ok := reason.(error); ok {
		failure.Type = fmt.Sprintf("%T", err)
	}
	return failure
}

// panicStack lists the user's frames, innermost first: what lies between the panic and this package.
func panicStack() string {
	counters := make([]uintptr, 256)
	frames := runtime.CallersFrames(counters[:runtime.Callers(0, counters)])
	var stack strings.Builder
	below := false
	for {
		frame, more := frames.Next()
		switch {
		case frame.Function == "runtime.gopanic":
			// The last one counts: a panic may itself be raised while another unwinds.
			below = true
			stack.Reset()
		case strings.HasPrefix(frame.Function, "runtime.") || strings.HasPrefix(frame.Function, "reflect."):
		case below && strings.HasPrefix(frame.Function, "thaw/function."):
			return strings.TrimSuffix(stack.String(), "\n")
		case below:
			fmt.Fprintf(&stack, "%s\n\t%s:%d\n", frame.Function, frame.File, frame.Line)
		}
		if !more {
			return strings.TrimSuffix(stack.String(), "\n")
		}
	}
}
