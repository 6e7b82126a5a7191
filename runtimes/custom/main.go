//go:build linux

// The launcher serves the stdio contract of the runtime protocol (docs/runtime-protocol.md): a program per invocation, in
// any language.
package main

import (
	"fmt"
	"os"

	"thaw/protocol"
)

func main() {
	children := newChildren()
	session, load, err := protocol.Accept("stdio", "1")
	if err != nil {
		fmt.Fprintln(os.Stderr, "launcher:", err)
		os.Exit(1)
	}
	files := newPayloadFiles()
	launcher, failure := newLauncher(session, load, children, files)
	if failure != nil {
		session.LoadFailed(*failure)
	} else {
		session.Ready()
	}
	err = session.Serve(func(call *protocol.Call) { launcher.run(call) })
	children.killAll()
	files.removeAll()
	if launcher == nil || isEnd(err) {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "launcher:", err)
	os.Exit(1)
}
