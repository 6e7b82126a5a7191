// Package process runs the programs of a sandbox and carries their input and output.
package process

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Channels of output, as indexes. A process has either the first two or the last.
const (
	stdout = iota
	stderr
	tty
	channelCount
)

var channelNames = [channelCount]string{"stdout", "stderr", "pty"}

// exitGrace is how long output may still come after the exit when a child that lives on holds the other end.
const exitGrace = 250 * time.Millisecond

// readBytes is the size of a pipe.
const readBytes = 64 << 10

// Process is a program that runs, or that ended a moment ago.
type Process struct {
	PID    int
	Tag    *string
	Config Config

	input    input
	terminal *os.File

	mu       sync.Mutex
	room     sync.Cond // A reader went on, came or went.
	outputs  [channelCount]output
	readers  map[*Reader]struct{}
	exit     *End
	deadline *time.Timer
}

type output struct {
	ring
	source *os.File
	open   bool
}

// End tells how a process ended, in the words of the protocol.
type End struct {
	ExitCode int    `json:"exitCode"`
	Exited   bool   `json:"exited"`
	Status   string `json:"status"`
	Error    string `json:"error,omitempty"`
}

func endOf(status syscall.WaitStatus) *End {
	end := &End{ExitCode: -1}
	switch {
	case status.Exited():
		end.ExitCode, end.Exited = status.ExitStatus(), true
		end.Status = "exit status " + itoa(status.ExitStatus())
	case status.Signaled():
		end.Status = "signal: " + status.Signal().String()
		if status.CoreDump() {
			end.Status += " (core dumped)"
		}
	}
	if !end.Exited || end.ExitCode != 0 {
		end.Error = end.Status
	}
	return end
}

// pump carries the output of one channel into its ring. While somebody reads, nothing is lost: the process waits
// for the fastest reader. While nobody does, the process goes on and the oldest bytes go.
func (p *Process) pump(channel int) {
	source := p.outputs[channel].source
	buffer := make([]byte, readBytes)
	for {
		n, err := source.Read(buffer)
		p.append(channel, buffer[:n])
		if err == nil {
			continue
		}
		held := errors.Is(err, os.ErrDeadlineExceeded)
		if held {
			held = p.drain(channel, source, buffer)
		}
		p.finish(channel)
		if held {
			// A child of the process still has the other end. It must not die of a closed pipe.
			discard(source, buffer)
		}
		_ = source.Close()
		return
	}
}

// drain takes what the ended process left in the pipe, without waiting for more; true when the pipe is still held.
func (p *Process) drain(channel int, source *os.File, buffer []byte) bool {
	_ = source.SetReadDeadline(time.Time{})
	raw, err := source.SyscallConn()
	if err != nil {
		return false
	}
	for {
		var n int
		var failure error
		err := raw.Read(func(fd uintptr) bool {
			n, failure = unix.Read(int(fd), buffer)
			return true
		})
		if errors.Is(failure, unix.EINTR) {
			continue
		}
		if err != nil || failure != nil || n <= 0 {
			return errors.Is(failure, unix.EAGAIN)
		}
		p.append(channel, buffer[:n])
	}
}

func discard(source *os.File, buffer []byte) {
	for {
		if _, err := source.Read(buffer); err != nil {
			return
		}
	}
}

func (p *Process) append(channel int, data []byte) {
	if len(data) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.hasRoom(channel, len(data)) {
		p.room.Wait()
	}
	p.outputs[channel].write(data)
	p.wake()
}

func (p *Process) hasRoom(channel, length int) bool {
	if len(p.readers) == 0 {
		return true
	}
	var fastest int64
	for reader := range p.readers {
		fastest = max(fastest, reader.position[channel])
	}
	return p.outputs[channel].end+int64(length)-fastest <= ringBytes
}

func (p *Process) wake() {
	for reader := range p.readers {
		select {
		case reader.wake <- struct{}{}:
		default:
		}
	}
}

func (p *Process) finish(channel int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outputs[channel].open = false
	p.wake()
}

// exited records the end. Output that is on its way still counts; see exitGrace.
func (p *Process) exited(end *End) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exit = end
	if p.deadline != nil {
		p.deadline.Stop()
	}
	p.input.close()
	p.wake()
	if p.hasOpenOutput() {
		time.AfterFunc(exitGrace, func() {
			for channel := range p.outputs {
				if source := p.outputs[channel].source; source != nil {
					_ = source.SetReadDeadline(time.Unix(1, 0))
				}
			}
		})
	}
}

func (p *Process) hasOpenOutput() bool {
	for channel := range p.outputs {
		if p.outputs[channel].open {
			return true
		}
	}
	return false
}

// heldBytes is the memory of the rings.
func (p *Process) heldBytes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	total := 0
	for channel := range p.outputs {
		total += len(p.outputs[channel].buffer)
	}
	return total
}

// idle is true when the process has ended and nobody reads what it left.
func (p *Process) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit != nil && len(p.readers) == 0 && !p.hasOpenOutput()
}
