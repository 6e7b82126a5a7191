package function

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"log"
	"math"
	"os"
	"sync"

	"thaw/protocol"
)

// output makes log lines of what the program prints. They belong to the invocation that runs while they are read, if just
// one does; with several at a time nobody can tell whose they are.
type output struct {
	session *protocol.Session
	streams []*capture

	mutex   sync.Mutex
	running map[uint32]struct{}
}

// captureOutput replaces os.Stdout and os.Stderr. Descriptors 1 and 2 stay what they are: the Go runtime's own last
// words, when the program crashes, must not go to a pipe that the same program reads.
func captureOutput(session *protocol.Session) *output {
	out := &output{session: session, running: map[uint32]struct{}{}}
	os.Stdout = out.capture(protocol.Stdout, os.Stdout)
	os.Stderr = out.capture(protocol.Stderr, os.Stderr)
	log.SetOutput(&logWriter{out})
	return out
}

// capture returns the file to print to. Where no pipe can be made, printing goes where it went before.
func (out *output) capture(source protocol.Source, before *os.File) *os.File {
	reader, writer, err := os.Pipe()
	if err != nil {
		return before
	}
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return before
	}
	stream := &capture{
		reader: reader, writer: writer, mark: []byte("\x00" + hex.EncodeToString(random[:])),
		lines: protocol.Lines{Emit: func(line string) { out.emit(source, line) }},
	}
	out.streams = append(out.streams, stream)
	go stream.read()
	return writer
}

func (out *output) emit(source protocol.Source, line string) {
	out.mutex.Lock()
	defer out.mutex.Unlock()
	var owner uint32
	if len(out.running) == 1 {
		for stream := range out.running {
			owner = stream
		}
	}
	out.session.Log(owner, source, line)
}

func (out *output) enter(stream uint32) {
	out.mutex.Lock()
	defer out.mutex.Unlock()
	out.running[stream] = struct{}{}
}

// leave returns when all that was printed so far is on its way to the worker.
func (out *output) leave(stream uint32) {
	out.flush()
	out.mutex.Lock()
	defer out.mutex.Unlock()
	delete(out.running, stream)
}

func (out *output) flush() {
	var waits [2]<-chan struct{}
	for index, stream := range out.streams {
		waits[index] = stream.flush()
	}
	for _, wait := range waits[:len(out.streams)] {
		<-wait
	}
}

// capture is one pipe that the program prints to. A mark, written to it like everything else, says up to where it was read.
type capture struct {
	reader, writer *os.File
	mark           []byte
	lines          protocol.Lines

	mutex   sync.Mutex
	waiting []chan struct{}
}

// flush returns a channel that is closed once everything printed before was read.
func (c *capture) flush() <-chan struct{} {
	done := make(chan struct{})
	c.mutex.Lock()
	c.waiting = append(c.waiting, done)
	c.mutex.Unlock()
	if _, err := c.writer.Write(c.mark); err != nil {
		// The function closed the file: nothing more comes from it, and nobody is kept waiting.
		c.release(math.MaxInt)
	}
	return done
}

func (c *capture) release(count int) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for ; count > 0 && len(c.waiting) > 0; count-- {
		close(c.waiting[0])
		c.waiting = c.waiting[1:]
	}
}

func (c *capture) read() {
	buffer := make([]byte, 64<<10)
	held := 0
	for {
		count, err := c.reader.Read(buffer[held:])
		if err != nil {
			return
		}
		held = copy(buffer, c.take(buffer[:held+count]))
	}
}

// take handles what was read, and returns the end of it that may be the beginning of a mark.
func (c *capture) take(data []byte) []byte {
	for {
		at := bytes.Index(data, c.mark)
		if at < 0 {
			break
		}
		c.lines.Push(data[:at])
		c.lines.Flush()
		c.release(1)
		data = data[at+len(c.mark):]
	}
	rest := data[len(data):]
	if at := bytes.LastIndexByte(data, 0); at >= 0 && bytes.HasPrefix(c.mark, data[at:]) {
		rest = data[at:]
	}
	c.lines.Push(data[:len(data)-len(rest)])
	return rest
}

// logWriter takes what package log prints, message by message. It is written before Write returns: log.Fatal ends the
// program right afterwards.
type logWriter struct{ out *output }

func (writer *logWriter) Write(message []byte) (int, error) {
	writer.out.flush()
	lines := protocol.Lines{Emit: func(line string) { writer.out.emit(protocol.Stderr, line) }}
	lines.Push(message)
	lines.Flush()
	return len(message), nil
}
