// Package bridge carries any number of connections over one byte stream, such as the attached input and output of a
// command in a container: HTTP/2 with prior knowledge, where each CONNECT is one connection.
//
// It works on frames, because net/http ends both directions of a stream with its handler: a connection could not go on
// in one direction, and its last bytes would race with the reset.
package bridge

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"

	"thaw/agent/internal/server"
)

// Run serves stdin and stdout until stdin ends. The authority "agent" means the agent's own socket.
func Run(socket string) error {
	return newSession(os.Stdin, os.Stdout, func(authority string) (net.Conn, int, error) {
		network, address, err := target(socket, authority)
		if err != nil {
			return nil, 400, err
		}
		conn, err := server.Dial(context.Background(), network, []string{address})
		return conn, 502, err
	}).run()
}

func target(socket, authority string) (network, address string, err error) {
	if authority == "agent" {
		return "unix", socket, nil
	}
	if encoded, ok := strings.CutPrefix(authority, "unix:"); ok {
		path, err := url.PathUnescape(encoded)
		if err != nil || !strings.HasPrefix(path, "/") {
			return "", "", fmt.Errorf("the socket in '%s' must be an absolute path, percent-encoded", authority)
		}
		return "unix", path, nil
	}
	if _, port, err := net.SplitHostPort(authority); err != nil || port == "" {
		return "", "", fmt.Errorf("the authority '%s' is not 'agent', 'host:port' or 'unix:<percent-encoded path>'", authority)
	}
	return "tcp", authority, nil
}

// carry joins a stream and a connection. The end of each direction is passed on, and the other goes on.
func carry(s *session, st *stream, conn net.Conn) {
	defer conn.Close()
	st.onReset(func() { _ = conn.Close() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			data, err := st.receive()
			if err != nil {
				if half, ok := conn.(interface{ CloseWrite() error }); ok && err == io.EOF {
					_ = half.CloseWrite()
				}
				return
			}
			if _, err := conn.Write(data); err != nil {
				// Nobody takes more; what comes the other way is still delivered.
				st.stopReceiving()
				return
			}
			s.consumed(st, len(data))
		}
	}()
	buffer := make([]byte, copyBytes)
	for {
		n, err := conn.Read(buffer)
		if n > 0 && s.send(st, buffer[:n], false) != nil {
			return
		}
		if err == io.EOF {
			_ = s.send(st, nil, true)
			break
		}
		if err != nil {
			s.reset(st)
			break
		}
	}
	<-done
}
