//go:build linux

package main

import (
	"io"
	"net"
	"sync"
)

// carry passes bytes between the worker and the program, both ways, until both are done. Who ends its own half may still
// read; when a half breaks, all of it does.
func carry(worker *net.UnixConn, program *net.TCPConn) {
	defer worker.Close()
	defer program.Close()
	var both sync.WaitGroup
	both.Add(2)
	half := func(to, from interface {
		net.Conn
		CloseWrite() error
	}) {
		defer both.Done()
		if _, err := io.Copy(to, from); err != nil {
			// The program hears at once that nobody reads any more.
			_ = program.SetLinger(0)
			program.Close()
			worker.Close()
			return
		}
		_ = to.CloseWrite()
	}
	go half(program, worker)
	go half(worker, program)
	both.Wait()
}
