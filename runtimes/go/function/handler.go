package function

import (
	"context"
	"errors"
	"fmt"
	"reflect"
)

var (
	contextType = reflect.TypeOf((*context.Context)(nil)).Elem()
	ownContext  = reflect.TypeOf((*Context)(nil))
	errorType   = reflect.TypeOf((*error)(nil)).Elem()
)

// handler is a user's function, looked at once.
type handler struct {
	function    reflect.Value
	takesCtx    bool
	decode      decoder // nil: takes no event
	resultIndex int     // -1: none
	errorIndex  int     // -1: none
}

func prepare(function any) (*handler, error) {
	value := reflect.ValueOf(function)
	if !value.IsValid() || value.Kind() != reflect.Func {
		return nil, fmt.Errorf("the handler must be a function, not %T", function)
	}
	if value.IsNil() {
		return nil, errors.New("the handler is nil")
	}
	kind := value.Type()
	if kind.IsVariadic() {
		return nil, fmt.Errorf("the handler %s must not be variadic", kind)
	}
	h := &handler{function: value, resultIndex: -1, errorIndex: -1}
	inputs := make([]reflect.Type, kind.NumIn())
	for index := range inputs {
		inputs[index] = kind.In(index)
	}
	if len(inputs) > 0 && inputs[0].Implements(contextType) {
		if !ownContext.AssignableTo(inputs[0]) {
			return nil, fmt.Errorf("the handler %s must take a context.Context, not %s", kind, inputs[0])
		}
		h.takesCtx = true
		inputs = inputs[1:]
	}
	switch len(inputs) {
	case 0:
	case 1:
		decode, err := decoderOf(inputs[0])
		if err != nil {
			return nil, fmt.Errorf("the handler %s: %w", kind, err)
		}
		h.decode = decode
	default:
		return nil, fmt.Errorf("the handler %s must take at most a context.Context and one event", kind)
	}
	return h, h.prepareResults(kind)
}

func (h *handler) prepareResults(kind reflect.Type) error {
	count := kind.NumOut()
	if count > 0 && kind.Out(count-1) == errorType {
		h.errorIndex = count - 1
		count--
	}
	switch count {
	case 0:
		return nil
	case 1:
		h.resultIndex = 0
		return unencodable(kind.Out(0))
	default:
		return fmt.Errorf("the handler %s must return at most one result and an error", kind)
	}
}

// unencodable says early what encoding/json would refuse with each answer.
func unencodable(result reflect.Type) error {
	if result == streamType {
		return nil
	}
	switch result.Kind() {
	case reflect.Func, reflect.Chan, reflect.Complex64, reflect.Complex128, reflect.UnsafePointer:
		return fmt.Errorf("the handler must return what can be encoded, or function.Stream, not %s", result)
	}
	return nil
}

func (h *handler) call(ctx *Context, event reflect.Value) (any, error) {
	arguments := make([]reflect.Value, 0, 2)
	if h.takesCtx {
		arguments = append(arguments, reflect.ValueOf(ctx))
	}
	if h.decode != nil {
		arguments = append(arguments, event)
	}
	results := h.function.Call(arguments)
	if h.errorIndex >= 0 {
		if err, _ := results[h.errorIndex].Interface().(error); err != nil {
			return nil, err
		}
	}
	if h.resultIndex < 0 {
		return nil, nil
	}
	return results[h.resultIndex].Interface(), nil
}
