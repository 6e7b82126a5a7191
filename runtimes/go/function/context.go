package function

import "context"

// Context is the context of an invocation: it ends when nobody waits for the answer any more, or at the deadline. A
// handler may take it in place of a context.Context.
type Context struct {
	context.Context
	// InvocationID is the same for all attempts of an invocation: use it to recognise one that was done already.
	InvocationID string
	// Attempt counts from 1.
	Attempt         int
	FunctionName    string
	FunctionVersion string
	MemoryLimitMib  int64
}

type contextKey struct{}

// Value makes the invocation known to contexts that are derived from this one.
func (ctx *Context) Value(key any) any {
	if key == (contextKey{}) {
		return ctx
	}
	return ctx.Context.Value(key)
}

// FromContext returns the invocation that ctx belongs to. Outside of one, as in a test, its fields are empty.
func FromContext(ctx context.Context) *Context {
	if invocation, ok := ctx.Value(contextKey{}).(*Context); ok {
		return invocation
	}
	return &Context{Context: ctx}
}
