// Package function serves a Go function on thaw.
//
//	func handler(ctx context.Context, order Order) (Receipt, error) { … }
//
//	func main() { function.Start(handler) }
//
// On thaw, importing this package connects the program to its worker and puts the function's environment in place before
// the importing package is initialised: package variables and main see the environment, and what they print is logged.
// Elsewhere, as in tests of the function, importing it does nothing.
package function

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"thaw/protocol"
)

// current is the connection of this program, or nil where thaw did not start it.
var current *program

func init() {
	if os.Getenv(protocol.SocketVariable) == "" {
		return
	}
	session, load, err := protocol.Accept("go", runtime.Version())
	if err != nil {
		fmt.Fprintln(os.Stderr, "thaw:", err)
		os.Exit(1)
	}
	current = connect(session, load)
}

// Start serves invocations with handler until the instance ends; it does not return.
//
// The handler is a function with, in this order, all optional: a context.Context, the event, a result, an error.
//
//	func(context.Context, Event) (Result, error)      func(Event) (Result, error)      func() error      …
//
// Event may be any type that encoding/json decodes; string for text, []byte for the body as it came, any for either, or
// Request. By HTTP, string, []byte and Request take the body of the request; other types take an object {method, path,
// query, headers, body}. Result may be any type that encoding/json encodes; string becomes text, []byte bytes, and Response and Stream
// what they say. Invocations run at the same time, each on a goroutine of its own, as far as the function's concurrency
// allows. A panic fails its invocation; one on a goroutine that the handler started ends the instance.
func Start(handler any) {
	if current == nil {
		fmt.Fprintln(os.Stderr, "This program is a thaw function: deploy it with `thaw deploy`, then invoke it.")
		os.Exit(2)
	}
	prepared, err := prepare(handler)
	current.output.flush()
	if err != nil {
		current.session.LoadFailed(protocol.Failure{Type: "HandlerError", Message: err.Error()})
	} else {
		current.handler = prepared
		close(current.prepared)
		current.session.Ready()
	}
	// The connection's end ends the process.
	select {}
}

type program struct {
	session *protocol.Session
	load    protocol.Load
	output  *output
	// Set before prepared is closed.
	handler  *handler
	prepared chan struct{}
}

func connect(session *protocol.Session, load protocol.Load) *program {
	for _, pair := range os.Environ() {
		if !protocol.ForUser(pair) {
			name, _, _ := strings.Cut(pair, "=")
			_ = os.Unsetenv(name)
		}
	}
	for name, value := range load.Env {
		_ = os.Setenv(name, value)
	}
	// Where the code folder is elsewhere, or none, relative paths are the function's own concern.
	_ = os.Chdir(load.CodeDir)
	if load.MemoryMib > 0 && os.Getenv("GOMEMLIMIT") == "" {
		// The collector works harder close to the limit, rather than let the kernel end the instance.
		debug.SetMemoryLimit(load.MemoryMib << 20 / 10 * 9)
	}
	session.Hook = runHooks
	p := &program{session: session, load: load, output: captureOutput(session), prepared: make(chan struct{})}
	go func() {
		_ = session.Serve(p.serve)
		os.Exit(0)
	}()
	return p
}
