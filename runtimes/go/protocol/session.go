// Package protocol is the runtime's end of the runtime protocol (docs/runtime-protocol.md). It is for programs that are
// runtimes: thaw/function and the stdio launcher. Functions import thaw/function instead.
//
// A runtime calls Accept once, loads the code, says Ready or LoadFailed, and meanwhile runs Serve, which calls it for each
// invocation on a goroutine of its own.
package protocol

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// SocketVariable names the environment variable with the path of the socket to listen on.
const SocketVariable = "THAW_RUNTIME_SOCKET"

// VariablePrefix begins the names of the variables that are meant for the runtime, not for the code that it runs.
const VariablePrefix = "THAW_RUNTIME_"

const version = 1

// Session is the one connection to the worker. Its methods may be called from several goroutines.
type Session struct {
	// Hook runs what the code wants done before a snapshot or after a restore, when its secret files are there. Set before
	// Serve; nil: nothing.
	Hook func(hook Hook) *Failure

	name, version string
	path          string
	reader        *bufio.Reader
	loadedAt      time.Time

	// Guards conn, which is nil between the worker of an instance that was snapshotted and that of a copy.
	writing sync.Mutex
	conn    net.Conn

	// Guards successors: where the worker of a copy connects. Not nil once the instance is ready for its snapshot.
	parking    sync.Mutex
	successors net.Listener

	mutex sync.Mutex
	calls map[uint32]*Call
}

// Accept waits for the worker on the socket that the environment names, greets it, and returns what it says to load.
func Accept(runtimeName, runtimeVersion string) (*Session, Load, error) {
	var load Load
	session := &Session{
		name: runtimeName, version: CutText(runtimeVersion, 64), path: os.Getenv(SocketVariable), calls: map[uint32]*Call{},
	}
	listener, err := listen(session.path)
	if err != nil {
		return nil, load, err
	}
	if err := session.accept(listener); err != nil {
		return nil, load, err
	}
	for {
		next, err := readFrame(session.reader)
		switch {
		case err != nil:
			return nil, load, err
		case next.kind == frameLoad:
			session.loadedAt = time.Now()
			if err := json.Unmarshal(next.payload, &load); err != nil {
				return session, load, err
			}
			err := writeSecrets(load.SecretFiles)
			if err != nil {
				session.LoadFailed(Failure{Type: "SecretError", Message: err.Error()})
			}
			load.SecretFiles = nil
			return session, load, err
		}
		if err := session.control(next); err != nil {
			return nil, load, err
		}
	}
}

// listen binds the final name at once: a snapshot loses the name of a socket that was renamed.
func listen(path string) (net.Listener, error) {
	if path == "" {
		return nil, errors.New(SocketVariable + " is not set: this program is started by thaw")
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	return listener, nil
}

// accept takes one connection, and greets the worker.
func (session *Session) accept(listener net.Listener) error {
	defer listener.Close()
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	session.reader = bufio.NewReaderSize(conn, 64<<10)
	session.writing.Lock()
	session.conn = conn
	session.writing.Unlock()
	session.sendJSON(frameHello, 0, map[string]any{
		"protocol": version, "runtime": session.name, "runtime_version": session.version,
	})
	return nil
}

// park makes the instance ready for its snapshot: the end of the connection is not its own from now on.
func (session *Session) park() error {
	session.unpark()
	if err := os.Remove(session.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := listen(session.path)
	if err != nil {
		return err
	}
	session.parking.Lock()
	defer session.parking.Unlock()
	session.successors = listener
	return nil
}

// unpark is for a worker that goes on with the connection that it has.
func (session *Session) unpark() {
	if listener := session.takeSuccessors(); listener != nil {
		listener.Close()
	}
}

func (session *Session) takeSuccessors() net.Listener {
	session.parking.Lock()
	defer session.parking.Unlock()
	listener := session.successors
	session.successors = nil
	return listener
}

// next reads a frame, from the worker of a copy where that of the snapshotted instance has gone.
func (session *Session) next() (frame, error) {
	for {
		next, err := readFrame(session.reader)
		if err == nil {
			return next, nil
		}
		listener := session.takeSuccessors()
		if listener == nil {
			return next, err
		}
		session.writing.Lock()
		conn := session.conn
		session.conn = nil
		session.writing.Unlock()
		conn.Close()
		if err := session.accept(listener); err != nil {
			return next, err
		}
	}
}

// Ready says that the code is loaded; Serve may deliver invocations from now on.
func (session *Session) Ready() {
	milliseconds := float64(time.Since(session.loadedAt).Microseconds()) / 1000
	session.sendJSON(frameReady, 0, map[string]any{"init_ms": milliseconds})
}

// LoadFailed says why the code cannot be used. The worker then ends the connection.
func (session *Session) LoadFailed(failure Failure) {
	failure.Reason = ""
	session.sendJSON(frameLoadFailed, 0, failure.bounded())
}

// Log sends a line, with its line break if it has one, that belongs to an invocation's stream, or to none (0).
func (session *Session) Log(stream uint32, source Source, line string) {
	text := validText(line)
	payload := make([]byte, 1, 1+len(text))
	payload[0] = byte(source)
	session.send(frameLog, stream, append(payload, text...))
}

// Serve delivers invocations until the connection ends, and returns why it did.
func (session *Session) Serve(invoke func(*Call)) error {
	for {
		next, err := session.next()
		if err != nil {
			return err
		}
		switch next.kind {
		case frameInvoke:
			call := &Call{Stream: next.stream, session: session, cancelled: make(chan struct{})}
			if call.Body, err = splitMeta(next.payload, &call.Meta); err != nil {
				return err
			}
			session.hold(call)
			if !call.Meta.More {
				go invoke(call)
			}
		case frameBody:
			// Bodies of calls that were cancelled may still be on their way.
			if call := session.held(next.stream); call != nil {
				call.Body = append(call.Body, next.payload...)
			}
		case frameBodyEnd:
			if call := session.held(next.stream); call != nil {
				call.Meta.More = false
				go invoke(call)
			}
		case frameCancel:
			if call := session.held(next.stream); call != nil {
				session.cancel(call)
			}
		default:
			if err := session.control(next); err != nil {
				return err
			}
		}
	}
}

// control answers what concerns the instance. Not right here: while the worker takes no bytes, a cancel must still be read.
func (session *Session) control(next frame) error {
	switch next.kind {
	case framePing:
		go session.send(framePong, 0, next.payload)
		return nil
	case frameHook:
		var hook Hook
		if err := json.Unmarshal(next.payload, &hook); err != nil {
			return err
		}
		go session.runHook(hook)
		return nil
	default:
		return fmt.Errorf("a frame of type %#x, which is not due", next.kind)
	}
}

func (session *Session) runHook(hook Hook) {
	done := struct {
		Hook  string   `json:"hook"`
		Error *Failure `json:"error,omitempty"`
	}{Hook: hook.Name}
	if failure := session.attempt(hook); failure != nil {
		bounded := failure.bounded()
		done.Error = &bounded
	}
	session.sendJSON(frameHookDone, 0, done)
}

func (session *Session) attempt(hook Hook) *Failure {
	if hook.Name == AfterRestore {
		session.unpark()
		if err := writeSecrets(hook.Files); err != nil {
			return &Failure{Type: "SecretError", Message: err.Error()}
		}
	}
	if session.Hook != nil {
		if failure := session.Hook(hook); failure != nil {
			return failure
		}
	}
	if hook.Name == BeforeSnapshot {
		if err := session.park(); err != nil {
			return &Failure{Type: "SocketError", Message: err.Error()}
		}
	}
	return nil
}

func (session *Session) cancel(call *Call) {
	select {
	case <-call.cancelled:
		return
	default:
		close(call.cancelled)
	}
	// Without all of its body the call never started, so nothing else would answer.
	if call.Meta.More && session.release(call) {
		go session.sendJSON(frameFailed, call.Stream, cancelledFailure)
	}
}

func (session *Session) hold(call *Call) {
	session.mutex.Lock()
	defer session.mutex.Unlock()
	session.calls[call.Stream] = call
}

func (session *Session) held(stream uint32) *Call {
	session.mutex.Lock()
	defer session.mutex.Unlock()
	return session.calls[stream]
}

// release reports whether the call was held: its last word may be said once.
func (session *Session) release(call *Call) bool {
	session.mutex.Lock()
	defer session.mutex.Unlock()
	_, held := session.calls[call.Stream]
	delete(session.calls, call.Stream)
	return held
}

func (session *Session) sendJSON(kind frameType, stream uint32, message any) {
	session.send(kind, stream, mustEncode(message))
}

// send ignores errors: a connection that takes no more bytes has ended, and Serve hears of that.
func (session *Session) send(kind frameType, stream uint32, parts ...[]byte) {
	total := 0
	for _, part := range parts {
		total += len(part)
	}
	buffers := net.Buffers{encodeHeader(kind, stream, total)}
	buffers = append(buffers, parts...)
	session.writing.Lock()
	defer session.writing.Unlock()
	if session.conn != nil {
		_, _ = buffers.WriteTo(session.conn)
	}
}

// ForUser reports whether a NAME=value pair of the environment is meant for the code that a runtime runs.
func ForUser(pair string) bool { return !strings.HasPrefix(pair, VariablePrefix) }
