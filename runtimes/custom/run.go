//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"thaw/protocol"
)

func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
}

// invoke serves one invocation. When the worker has the last word of the answer, nothing of the invocation is left.
func (l *launcher) invoke(call *protocol.Call) {
	answer := l.run(call)
	answer()
}

// run starts the program, feeds it, and returns how to end the answer when the program has ended.
func (l *launcher) run(call *protocol.Call) func() {
	stdin, stdout, stderr, err := pipes()
	if err != nil {
		return func() { call.Fail(startFailure(l.program.argv[0], err)) }
	}
	defer stdin.close()
	defer stdout.close()
	defer stderr.close()
	payloadFile := l.files.create(l.env["TMPDIR"], call.Body)
	defer l.files.remove(payloadFile)

	pid, exit, err := l.start(call, payloadFile, []uintptr{uintptr(stdin.theirs), uintptr(stdout.theirs), uintptr(stderr.theirs)})
	stdin.closeTheirs()
	stdout.closeTheirs()
	stderr.closeTheirs()
	if err != nil {
		return func() { call.Fail(startFailure(l.program.argv[0], err)) }
	}

	result := answer{call: call}
	end := tail{}
	lines := protocol.Lines{Emit: func(line string) { l.session.Log(call.Stream, protocol.Stderr, line) }}
	var reading sync.WaitGroup
	reading.Add(2)
	go func() {
		defer reading.Done()
		stdout.read(result.take)
	}()
	go func() {
		defer reading.Done()
		stderr.read(func(data []byte) {
			end.take(data)
			lines.Push(data)
		})
	}()
	go func() {
		// A program that does not read all of its input is no failure.
		_, _ = stdin.ours.Write(call.Body)
		_ = stdin.ours.Close()
	}()

	status := l.await(call, pid, exit)
	stdout.stop()
	stderr.stop()
	reading.Wait()
	lines.Flush()
	if status.Exited() && status.ExitStatus() == 0 {
		return result.finish
	}
	return func() {
		call.Fail(protocol.Failure{
			Type: "ExitError", Message: describe(l.program.name(), status), Stack: end.text(),
		})
	}
}

func pipes() (stdin, stdout, stderr pipe, err error) {
	if stdin, err = inputPipe(); err != nil {
		return
	}
	if stdout, err = outputPipe(); err != nil {
		stdin.close()
		return
	}
	if stderr, err = outputPipe(); err != nil {
		stdin.close()
		stdout.close()
	}
	return
}

func (l *launcher) start(
	call *protocol.Call, payloadFile string, files []uintptr,
) (int, <-chan syscall.WaitStatus, error) {
	attempt := func(withPayload bool) (int, <-chan syscall.WaitStatus, error) {
		env := l.env.of(call, l.function, payloadFile, withPayload)
		return l.children.start(l.program.path, l.program.argv, &syscall.ProcAttr{Dir: l.program.dir, Env: env, Files: files})
	}
	pid, exit, err := attempt(true)
	if err == syscall.E2BIG {
		// Arguments and environment together are limited too; the payload is also on stdin.
		return attempt(false)
	}
	return pid, exit, err
}

// await returns when the program has ended; a cancelled one is ended.
func (l *launcher) await(call *protocol.Call, pid int, exit <-chan syscall.WaitStatus) syscall.WaitStatus {
	select {
	case status := <-exit:
		return status
	case <-call.Cancelled():
		l.children.kill(pid)
		return <-exit
	}
}

func startFailure(name string, err error) protocol.Failure {
	return protocol.Failure{Type: "StartError", Message: fmt.Sprintf("%s could not be started: %v.", name, err)}
}

func describe(name string, status syscall.WaitStatus) string {
	if status.Signaled() {
		signal := status.Signal()
		return fmt.Sprintf("%s was ended by signal %d (%s).", name, int(signal), signal)
	}
	return fmt.Sprintf("%s exited with code %d.", name, status.ExitStatus())
}
