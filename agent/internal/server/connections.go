package server

import (
	"net"
	"sync"
)

// connections are all that were accepted and not closed yet, also those that a tunnel took over.
type connections struct {
	mu   sync.Mutex
	open map[*trackedConn]struct{}
}

type trackedConn struct {
	net.Conn
	owner *connections
}

// CloseWrite ends one direction; tunnels need it.
func (c *trackedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

func (c *trackedConn) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.open, c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}

// closeAll closes every connection but one.
func (cs *connections) closeAll(but net.Conn) {
	cs.mu.Lock()
	var closing []*trackedConn
	for conn := range cs.open {
		if conn != but {
			closing = append(closing, conn)
		}
	}
	cs.mu.Unlock()
	for _, conn := range closing {
		// A reset leaves no socket in TIME_WAIT, which a snapshot could not carry.
		if tcp, ok := conn.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}

// listener makes a listener that adds to the connections.
func (cs *connections) listener(inner net.Listener) net.Listener { return &trackedListener{inner, cs} }

type trackedListener struct {
	net.Listener
	owner *connections
}

func (l *trackedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tracked := &trackedConn{conn, l.owner}
	l.owner.mu.Lock()
	if l.owner.open == nil {
		l.owner.open = map[*trackedConn]struct{}{}
	}
	l.owner.open[tracked] = struct{}{}
	l.owner.mu.Unlock()
	return tracked, nil
}
