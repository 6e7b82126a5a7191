//go:build linux

package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"

	"thaw/protocol"
)

// lambda serves the custom contract: the program, started once, speaks the Lambda Runtime API. It asks for an invocation,
// answers it, and asks for the next one.
type lambda struct {
	session  *protocol.Session
	children *children
	program  program
	env      environment
	function string
	listener net.Listener
	resident *resident

	// An invocation goes to the program's waiting request.
	calls chan *protocol.Call

	mutex sync.Mutex
	phase phase
	// What the program works on; nil while it asks for more.
	current *protocol.Call
	// The program has begun to answer it.
	answering bool
	// The request that waits for an invocation; nil: none does.
	waiting *poll
	// The program that runs now has got an invocation.
	worked bool
}

// poll is one request for an invocation.
type poll struct{ _ byte }

// phase is how far loading has come.
type phase int

const (
	loading phase = iota
	ready
	failed
)

func newLambda(session *protocol.Session, load protocol.Load, children *children) (contract, *protocol.Failure) {
	defaults := map[string]string{"AWS_REGION": "local", "AWS_DEFAULT_REGION": "local", "TZ": "UTC"}
	for name, value := range load.Env {
		defaults[name] = value
	}
	env := environmentOf(os.Environ(), defaults).withDependencies(load.CodeDir).forResident()
	program, failure := loadProgram(load, env)
	if failure != nil {
		return nil, failure
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, &protocol.Failure{Type: "PortError", Message: fmt.Sprintf("There is no free port: %v.", err)}
	}
	for name, value := range map[string]string{
		"AWS_LAMBDA_RUNTIME_API":          listener.Addr().String(),
		"AWS_LAMBDA_FUNCTION_NAME":        load.Function,
		"AWS_LAMBDA_FUNCTION_VERSION":     load.Version,
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.FormatInt(load.MemoryMib, 10),
		"AWS_LAMBDA_INITIALIZATION_TYPE":  "on-demand",
		"AWS_LAMBDA_LOG_GROUP_NAME":       "/aws/lambda/" + load.Function,
		"AWS_LAMBDA_LOG_STREAM_NAME":      load.Version,
		"LAMBDA_TASK_ROOT":                load.CodeDir,
		"LAMBDA_RUNTIME_DIR":              load.CodeDir,
		"_HANDLER":                        load.Handler,
	} {
		env[name] = value
	}
	return &lambda{
		session: session, children: children, program: program, env: env, function: load.Function,
		listener: listener, calls: make(chan *protocol.Call),
	}, nil
}

func (l *lambda) load() {
	go func() { _ = http.Serve(l.listener, l.api()) }()
	for {
		resident, failure := startResident(l.children, l.program, l.env.with(nil), l.log)
		if failure != nil {
			if !l.failLoading(*failure) {
				l.session.Log(0, protocol.Stderr, failure.Message)
				l.end()
			}
			return
		}
		l.mutex.Lock()
		l.resident = resident
		l.mutex.Unlock()
		<-resident.ended
		end := resident.failure()
		if l.failLoading(end) || !l.loaded() {
			return
		}
		l.session.Log(l.stream(), protocol.Stderr, end.Message)
		if !l.mayRestart() {
			l.end()
		}
	}
}

// mayRestart says whether a program that ended is started again, as Lambda does: some end themselves after an error that they
// have reported. Not with an invocation in its hands, which has failed, nor when it ended before it got one.
func (l *lambda) mayRestart() bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	may := l.current == nil && l.worked
	l.worked = false
	l.waiting = nil
	return may
}

// invoke hands an invocation to the program when it asks for one.
func (l *lambda) invoke(call *protocol.Call) {
	select {
	case l.calls <- call:
	case <-call.Cancelled():
		call.Fail(protocol.Failure{})
	}
}

func (l *lambda) close() {}

// end ends the instance: its connection to the worker is lost.
func (l *lambda) end() {
	l.children.killAll()
	os.Exit(1)
}

// log says which invocation a line belongs to: there is only one at a time.
func (l *lambda) log(source protocol.Source, line string) { l.session.Log(l.stream(), source, line) }

func (l *lambda) stream() uint32 {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.current == nil {
		return 0
	}
	return l.current.Stream
}

func (l *lambda) loaded() bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.phase == ready
}

// failLoading reports a failure of the load, unless its outcome is known already.
func (l *lambda) failLoading(failure protocol.Failure) bool {
	l.mutex.Lock()
	first := l.phase == loading
	if first {
		l.phase = failed
	}
	l.mutex.Unlock()
	if first {
		l.session.LoadFailed(failure)
	}
	return first
}

// ask is the program's wish for an invocation; the first one says that it is loaded. Nil: it is not due.
func (l *lambda) ask() *poll {
	l.mutex.Lock()
	if l.phase == failed || l.current != nil || l.waiting != nil {
		l.mutex.Unlock()
		return nil
	}
	first := l.phase == loading
	l.phase = ready
	wish := &poll{}
	l.waiting = wish
	l.mutex.Unlock()
	if first {
		l.settle()
		l.session.Ready()
	}
	return wish
}

// give ends a wish, with the invocation that the program gets, if any. False: the program has ended since.
func (l *lambda) give(wish *poll, call *protocol.Call) bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.waiting != wish {
		return false
	}
	l.waiting = nil
	l.current = call
	l.worked = l.worked || call != nil
	return true
}

// settle logs what the program has printed so far.
func (l *lambda) settle() {
	l.mutex.Lock()
	resident := l.resident
	l.mutex.Unlock()
	if resident != nil {
		resident.settle()
	}
}

// answer returns the invocation of this id, which the program begins to answer; nil when it may not.
func (l *lambda) answer(id string) *protocol.Call {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.current == nil || l.answering || l.current.Meta.ID != id {
		return nil
	}
	l.answering = true
	return l.current
}

// finish forgets the invocation. What the program printed about it is logged before its last word is said.
func (l *lambda) finish(call *protocol.Call, lastWord func()) {
	l.settle()
	l.mutex.Lock()
	l.current = nil
	l.answering = false
	l.mutex.Unlock()
	lastWord()
}

// watch ends the instance when nobody waits for the invocation any more: the program cannot be told to stop.
func (l *lambda) watch(call *protocol.Call) {
	<-call.Cancelled()
	l.mutex.Lock()
	working := l.current == call && !l.answering
	l.mutex.Unlock()
	if working {
		l.end()
	}
}
