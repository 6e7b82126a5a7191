//go:build linux

package main

import (
	"os"

	"thaw/protocol"
)

// launcher serves the stdio contract: it starts the program of one version, once for each invocation.
type launcher struct {
	session  *protocol.Session
	children *children
	files    *payloadFiles

	function string
	program  program
	env      environment
}

func newLauncher(session *protocol.Session, load protocol.Load, children *children) (contract, *protocol.Failure) {
	env := environmentOf(os.Environ(), load.Env).withDependencies(load.CodeDir)
	program, failure := loadProgram(load, env)
	if failure != nil {
		return nil, failure
	}
	return &launcher{
		session: session, children: children, files: newPayloadFiles(), function: load.Function, program: program, env: env,
	}, nil
}

func (l *launcher) load() { l.session.Ready() }

func (l *launcher) close() { l.files.removeAll() }
