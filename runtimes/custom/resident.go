//go:build linux

package main

import (
	"os"
	"sync"
	"syscall"

	"thaw/protocol"
)

// resident is a program that is started once and lives as long as its instance.
type resident struct {
	name string
	// Closed when the program has ended and all of its output has been taken; status is known then.
	ended  chan struct{}
	status syscall.WaitStatus

	stdout, stderr output
	printed        tail
}

// output is one of the streams that a resident writes. What lies in the pipe is taken under the mutex, so that whoever holds
// it knows that everything taken has been logged.
type output struct {
	pipe  pipe
	mutex sync.Mutex
	lines protocol.Lines
	take  func([]byte)
}

// startResident runs a program. log gets its lines, from two goroutines.
func startResident(
	children *children, program program, env []string, log func(source protocol.Source, line string),
) (*resident, *protocol.Failure) {
	r := &resident{name: program.name(), ended: make(chan struct{})}
	var printing sync.Mutex
	for source, stream := range map[protocol.Source]*output{protocol.Stdout: &r.stdout, protocol.Stderr: &r.stderr} {
		source, stream := source, stream
		stream.lines.Emit = func(line string) { log(source, line) }
		stream.take = func(data []byte) {
			printing.Lock()
			r.printed.take(data)
			printing.Unlock()
			stream.lines.Push(data)
		}
	}
	exit, err := r.start(children, program, env)
	if err != nil {
		failure := startFailure(program.argv[0], err)
		return nil, &failure
	}
	var reading sync.WaitGroup
	for _, stream := range []*output{&r.stdout, &r.stderr} {
		stream := stream
		reading.Add(1)
		go func() {
			defer reading.Done()
			stream.read()
		}()
	}
	go func() {
		r.status = <-exit
		for _, stream := range []*output{&r.stdout, &r.stderr} {
			// Somebody who left the program's group may still hold the other end.
			stream.pipe.stop()
		}
		reading.Wait()
		for _, stream := range []*output{&r.stdout, &r.stderr} {
			stream.settle()
			stream.lines.Flush()
		}
		close(r.ended)
	}()
	return r, nil
}

func (r *resident) start(children *children, program program, env []string) (<-chan syscall.WaitStatus, error) {
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	if r.stdout.pipe, err = outputPipe(); err != nil {
		return nil, err
	}
	defer r.stdout.pipe.closeTheirs()
	if r.stderr.pipe, err = outputPipe(); err != nil {
		return nil, err
	}
	defer r.stderr.pipe.closeTheirs()
	files := []uintptr{stdin.Fd(), uintptr(r.stdout.pipe.theirs), uintptr(r.stderr.pipe.theirs)}
	_, exit, err := children.start(program.path, program.argv, &syscall.ProcAttr{Dir: program.dir, Env: env, Files: files})
	return exit, err
}

// failure says that the program ended, with the end of what it printed.
func (r *resident) failure() protocol.Failure {
	return protocol.Failure{Type: "ExitError", Message: describe(r.name, r.status), Stack: r.printed.text()}
}

// settle logs everything that the program has written so far.
func (r *resident) settle() {
	r.stdout.settle()
	r.stderr.settle()
}

// read logs what the program writes until the pipe ends or is stopped.
func (stream *output) read() {
	raw, err := stream.pipe.ours.SyscallConn()
	if err != nil {
		return
	}
	// Not ready: wait until there is more.
	_ = raw.Read(func(fd uintptr) bool { return stream.drain(fd) })
}

func (stream *output) settle() {
	if raw, err := stream.pipe.ours.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { stream.drain(fd) })
	}
}

// drain takes what is in the pipe, not more than a pipe can hold, and reports whether the pipe has ended.
func (stream *output) drain(fd uintptr) bool {
	const maxPipeBytes = 1 << 20
	stream.mutex.Lock()
	defer stream.mutex.Unlock()
	buffer := make([]byte, 64<<10)
	for taken := 0; taken < maxPipeBytes; {
		count, err := syscall.Read(int(fd), buffer)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return false
		case err != nil || count <= 0:
			return true
		default:
			stream.take(buffer[:count])
			taken += count
		}
	}
	return false
}
