//go:build linux

package main

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// pipe is a pipe between the launcher and a program. The launcher's end never blocks a thread; the program's end is an
// ordinary, blocking one.
type pipe struct {
	ours   *os.File
	theirs int
}

func outputPipe() (pipe, error) { return newPipe(0, 1) }
func inputPipe() (pipe, error)  { return newPipe(1, 0) }

func newPipe(ours, theirs int) (pipe, error) {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return pipe{}, err
	}
	// Files that are non-blocking when they are made honour deadlines.
	if err := syscall.SetNonblock(ends[ours], true); err != nil {
		_ = syscall.Close(ends[0])
		_ = syscall.Close(ends[1])
		return pipe{}, err
	}
	return pipe{ours: os.NewFile(uintptr(ends[ours]), "pipe"), theirs: ends[theirs]}, nil
}

func (p *pipe) closeTheirs() {
	if p.theirs >= 0 {
		_ = syscall.Close(p.theirs)
		p.theirs = -1
	}
}

func (p *pipe) close() {
	_ = p.ours.Close()
	p.closeTheirs()
}

// stop makes read return once it has taken what lies in the pipe, even if somebody still holds the other end.
func (p *pipe) stop() { _ = p.ours.SetReadDeadline(time.Unix(1, 0)) }

// read gives everything that the program writes to take, until the pipe ends or stop is called.
func (p *pipe) read(take func([]byte)) {
	buffer := make([]byte, 64<<10)
	for {
		count, err := p.ours.Read(buffer)
		if count > 0 {
			take(buffer[:count])
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.drain(buffer, take)
			return
		}
		if err != nil {
			return
		}
	}
}

// drain takes what is in the pipe already. Not more than a pipe can hold: somebody who left the group may go on writing.
func (p *pipe) drain(buffer []byte, take func([]byte)) {
	const maxPipeBytes = 1 << 20
	_ = p.ours.SetReadDeadline(time.Time{})
	raw, err := p.ours.SyscallConn()
	if err != nil {
		return
	}
	for taken := 0; taken < maxPipeBytes; {
		var count int
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			count, readErr = syscall.Read(int(fd), buffer)
			return true
		})
		if readErr == syscall.EINTR {
			continue
		}
		if err != nil || readErr != nil || count <= 0 {
			return
		}
		take(buffer[:count])
		taken += count
	}
}
