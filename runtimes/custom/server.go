//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"thaw/protocol"
)

// The worker connects to this socket, beside that of the runtime, for each connection to the program's port.
const httpSocketName = "http.sock"

// server serves the http contract: the program is a web server, started once. Requests do not pass through the session; the
// worker speaks HTTP with the program over connections that the launcher only carries.
type server struct {
	session  *protocol.Session
	children *children
	program  program
	env      environment
	port     int
	// Where the program listens. Set before the session is ready. A restored socket is no longer the user's, so it is found once.
	addresses []string
}

func newServer(session *protocol.Session, load protocol.Load, children *children) (contract, *protocol.Failure) {
	env := environmentOf(os.Environ(), load.Env).withDependencies(load.CodeDir).forResident()
	program, failure := loadProgram(load, env)
	if failure != nil {
		return nil, failure
	}
	port, failure := choosePort(env["PORT"], load.Port)
	if failure != nil {
		return nil, failure
	}
	env["PORT"] = strconv.Itoa(port)
	s := &server{session: session, children: children, program: program, env: env, port: port}
	if env[hookVariable] != "" {
		env[tokenVariable] = newToken()
		session.Hook = s.hook
	}
	return s, nil
}

// choosePort takes the port of the environment, else the one that the worker wants, else any that is free.
func choosePort(inEnvironment string, wanted int) (int, *protocol.Failure) {
	if inEnvironment != "" {
		port, err := strconv.Atoi(inEnvironment)
		if err != nil || port < 1 || port > 65535 {
			return 0, &protocol.Failure{
				Type: "PortError", Message: fmt.Sprintf("The environment variable PORT is %q, which is no port.", inEnvironment),
			}
		}
		return port, nil
	}
	if wanted != 0 {
		return wanted, nil
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, &protocol.Failure{Type: "PortError", Message: fmt.Sprintf("There is no free port: %v.", err)}
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func (s *server) load() {
	log := func(source protocol.Source, line string) { s.session.Log(0, source, line) }
	resident, failure := startResident(s.children, s.program, s.env.with(nil), log)
	if failure != nil {
		s.session.LoadFailed(*failure)
		return
	}
	addresses := s.awaitListening(resident)
	if addresses == nil {
		failure := resident.failure()
		failure.Message += fmt.Sprintf(" It did not listen on port %d, which the environment variable PORT names.", s.port)
		s.session.LoadFailed(failure)
		return
	}
	s.addresses = addresses
	if err := s.serve(addresses); err != nil {
		s.session.LoadFailed(protocol.Failure{Type: "SocketError", Message: err.Error()})
		return
	}
	s.session.Ready()
	<-resident.ended
	s.session.Log(0, protocol.Stderr, resident.failure().Message)
	s.children.killAll()
	os.Exit(1)
}

// awaitListening returns where the program listens, or nil when it ended first. How long it may take is for the worker to
// say, who ends the instance.
func (s *server) awaitListening(resident *resident) []string {
	// The kernel announces to nobody that a socket began to listen.
	const longestPause = 20 * time.Millisecond
	for pause := time.Millisecond; ; pause *= 2 {
		if addresses := listeningAddresses(s.port); addresses != nil {
			return addresses
		}
		if pause > longestPause {
			pause = longestPause
		}
		select {
		case <-resident.ended:
			return nil
		case <-time.After(pause):
		}
	}
}

func (s *server) serve(addresses []string) error {
	path := filepath.Join(filepath.Dir(os.Getenv(protocol.SocketVariable)), httpSocketName)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	listener.SetUnlinkOnClose(false)
	go func() {
		for {
			worker, err := listener.AcceptUnix()
			if err != nil {
				// Out of file descriptors, most likely: those who wait are served when others have gone.
				time.Sleep(10 * time.Millisecond)
				continue
			}
			go s.carry(worker, addresses)
		}
	}()
	return nil
}

func (s *server) carry(worker *net.UnixConn, addresses []string) {
	for _, address := range addresses {
		program, err := net.Dial("tcp", net.JoinHostPort(address, strconv.Itoa(s.port)))
		if err == nil {
			carry(worker, program.(*net.TCPConn))
			return
		}
	}
	worker.Close()
}

func (s *server) invoke(call *protocol.Call) {
	call.Fail(protocol.Failure{Type: "ContractError", Message: "A web server takes requests, not invocations."})
}

func (s *server) close() {}
