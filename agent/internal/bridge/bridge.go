// Package bridge carries any number of connections over one byte stream, such as the attached input and output of a
// command in a container: HTTP/2 with prior knowledge, where each CONNECT is one connection.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"thaw/agent/internal/server"
)

const (
	streamWindowBytes     = 4 << 20
	connectionWindowBytes = 64 << 20
	maxStreams            = 4096
)

// Run serves stdin and stdout until stdin ends. The authority "agent" means the agent's own socket.
func Run(socket string) error {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	web := &http.Server{
		Handler:   handler(socket),
		Protocols: protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerStream:     streamWindowBytes,
			MaxReceiveBufferPerConnection: connectionWindowBytes,
			MaxReadFrameSize:              1 << 20,
		},
	}
	pipe := &pipe{closed: make(chan struct{})}
	err := web.Serve(&once{conn: pipe})
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func handler(socket string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "only CONNECT is served: :authority is 'agent', 'host:port' or 'unix:<percent-encoded path>'", http.StatusMethodNotAllowed)
			return
		}
		network, address, err := target(socket, r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		inner, err := server.Dial(r.Context(), network, []string{address})
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer inner.Close()
		join(w, r, inner)
	})
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

// join copies both ways. The caller may end its direction first; the stream ends when the inner side does.
func join(w http.ResponseWriter, r *http.Request, inner net.Conn) {
	control := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	if control.Flush() != nil {
		return
	}
	defer context.AfterFunc(r.Context(), func() { _ = inner.Close() })()
	go func() {
		_, err := io.Copy(inner, r.Body)
		if half, ok := inner.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
			return
		}
		_ = inner.Close()
	}()
	_, _ = io.Copy(flusher{w, control}, inner)
}

// flusher sends each piece at once.
type flusher struct {
	io.Writer
	control *http.ResponseController
}

func (f flusher) Write(data []byte) (int, error) {
	n, err := f.Writer.Write(data)
	if err == nil {
		err = f.control.Flush()
	}
	return n, err
}

// once is a listener with one connection; it ends with it.
type once struct {
	conn *pipe
	gone bool
}

func (o *once) Accept() (net.Conn, error) {
	if !o.gone {
		o.gone = true
		return o.conn, nil
	}
	<-o.conn.closed
	return nil, io.EOF
}

func (o *once) Close() error   { return nil }
func (o *once) Addr() net.Addr { return address{} }

// pipe is stdin and stdout as a connection.
type pipe struct {
	closed chan struct{}
	once   sync.Once
}

func (p *pipe) Read(buffer []byte) (int, error)  { return os.Stdin.Read(buffer) }
func (p *pipe) Write(buffer []byte) (int, error) { return os.Stdout.Write(buffer) }

func (p *pipe) Close() error {
	p.once.Do(func() {
		close(p.closed)
		_ = os.Stdin.Close()
		_ = os.Stdout.Close()
	})
	return nil
}

func (p *pipe) LocalAddr() net.Addr              { return address{} }
func (p *pipe) RemoteAddr() net.Addr             { return address{} }
func (p *pipe) SetDeadline(time.Time) error      { return nil }
func (p *pipe) SetReadDeadline(time.Time) error  { return nil }
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }

type address struct{}

func (address) Network() string { return "stdio" }
func (address) String() string  { return "stdio" }
