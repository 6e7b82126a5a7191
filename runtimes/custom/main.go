//go:build linux

// The launcher serves the contracts that know nothing of languages (docs/runtime-protocol.md): stdio, a program per
// invocation; http, a web server; custom, a program that speaks the Lambda Runtime API.
package main

import (
	"fmt"
	"os"

	"thaw/protocol"
)

// contract is one way to use the program of a version.
type contract interface {
	// load makes it ready, and says so or why not. Runs beside invoke, which is called once it is ready.
	load()
	invoke(call *protocol.Call)
	close()
}

func main() {
	children := newChildren()
	session, load, err := protocol.Accept("custom", "1")
	if err != nil {
		fmt.Fprintln(os.Stderr, "launcher:", err)
		os.Exit(1)
	}
	contract, failure := newContract(session, load, children)
	if failure != nil {
		session.LoadFailed(*failure)
	} else {
		go contract.load()
	}
	err = session.Serve(func(call *protocol.Call) { contract.invoke(call) })
	children.killAll()
	if contract == nil {
		os.Exit(0)
	}
	contract.close()
	if isEnd(err) {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "launcher:", err)
	os.Exit(1)
}

func newContract(session *protocol.Session, load protocol.Load, children *children) (contract, *protocol.Failure) {
	switch load.Contract {
	case "stdio":
		return newLauncher(session, load, children)
	case "http":
		return newServer(session, load, children)
	case "custom":
		return newLambda(session, load, children)
	}
	return nil, &protocol.Failure{
		Type:    "ContractError",
		Message: fmt.Sprintf("The launcher serves the contracts stdio, http and custom, not %s.", load.Contract),
	}
}
