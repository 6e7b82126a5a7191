package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"thaw/agent/internal/connect"
	"thaw/agent/internal/files"
)

// dialTimeout bounds connecting inside the sandbox, where nothing is far.
const dialTimeout = 5 * time.Second

// tunnel turns the connection into one to a port or a socket inside the sandbox.
func (s *Server) tunnel(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "tcp") {
		w.Header().Set("Upgrade", "tcp")
		connect.WriteJSON(w, http.StatusUpgradeRequired, map[string]any{"code": http.StatusUpgradeRequired, "message": "a tunnel needs 'Connection: Upgrade' and 'Upgrade: tcp'"})
		return
	}
	network, addresses, failure := tunnelTarget(r)
	if failure != nil {
		files.WriteError(w, failure)
		return
	}
	inner, err := Dial(r.Context(), network, addresses)
	if err != nil {
		connect.WriteJSON(w, http.StatusBadGateway, map[string]any{"code": http.StatusBadGateway, "message": err.Error()})
		return
	}
	defer inner.Close()
	outer, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer outer.Close()
	_ = outer.SetDeadline(time.Time{})
	if _, err := outer.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")); err != nil {
		return
	}
	// The caller may have sent bytes behind its request.
	early, _ := buffered.Reader.Peek(buffered.Reader.Buffered())
	if _, err := inner.Write(early); err != nil {
		return
	}
	defer context.AfterFunc(r.Context(), func() {
		_ = inner.Close()
		_ = outer.Close()
	})()
	join(outer, inner)
}

func tunnelTarget(r *http.Request) (network string, addresses []string, failure *connect.Error) {
	query := r.URL.Query()
	if path := query.Get("socket"); path != "" {
		if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
			return "", nil, connect.Errorf(connect.InvalidArgument, "socket must be an absolute path")
		}
		return "unix", []string{path}, nil
	}
	port, err := strconv.Atoi(query.Get("port"))
	if err != nil || port < 1 || port > 65535 {
		return "", nil, connect.Errorf(connect.InvalidArgument, "port must be a number from 1 to 65535")
	}
	return "tcp", []string{fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("[::1]:%d", port)}, nil
}

// Dial connects to the first address where somebody listens.
func Dial(ctx context.Context, network string, addresses []string) (net.Conn, error) {
	var first error
	for _, address := range addresses {
		dialer := net.Dialer{Timeout: dialTimeout}
		conn, err := dialer.DialContext(ctx, network, address)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = fmt.Errorf("nothing in the sandbox listens on %s: %w", address, err)
		}
	}
	return nil, first
}

// join copies both ways; the end of one direction is passed on, and the other goes on until it ends too.
func join(a, b net.Conn) {
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			_, err := io.Copy(pair[0], pair[1])
			if half, ok := pair[0].(interface{ CloseWrite() error }); ok && err == nil {
				_ = half.CloseWrite()
				return
			}
			_ = a.Close()
			_ = b.Close()
		})
	}
	both.Wait()
}
