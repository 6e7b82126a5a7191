package server

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"thaw/agent/internal/connect"
)

// unaryGrace is how long a snapshot waits for calls that run.
const unaryGrace = 2 * time.Second

var errSnapshot = connect.Errorf(connect.Unavailable, "the sandbox is being snapshotted: connect again once it runs")

// gate counts the calls that run, and holds new ones off while a snapshot is taken.
type gate struct {
	mu      sync.Mutex
	closed  bool
	running map[*call]struct{}
	left    chan struct{} // Replaced each time a call ends.
}

type call struct {
	cancel   context.CancelCauseFunc
	isStream bool
}

func newGate() *gate { return &gate{running: map[*call]struct{}{}, left: make(chan struct{})} }

// enter lets a call in; nil while the gate is closed.
func (g *gate) enter(r *http.Request) (*http.Request, *call) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, nil
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	c := &call{cancel, r.URL.Path == "/tunnel" || strings.HasPrefix(r.Header.Get("Content-Type"), "application/connect+")}
	g.running[c] = struct{}{}
	return r.WithContext(ctx), c
}

func (g *gate) leave(c *call) {
	c.cancel(nil)
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.running, c)
	close(g.left)
	g.left = make(chan struct{})
}

// close refuses new calls, ends streams now and all others that do not end in time by themselves.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel(func(c *call) bool { return c.isStream })
	if g.wait(unaryGrace) {
		return
	}
	g.cancel(func(*call) bool { return true })
	g.wait(unaryGrace / 4)
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = false
}

func (g *gate) isClosed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

func (g *gate) cancel(which func(*call) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.running {
		if which(c) {
			c.cancel(errSnapshot)
		}
	}
}

func (g *gate) wait(limit time.Duration) bool {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		g.mu.Lock()
		left, count := g.left, len(g.running)
		g.mu.Unlock()
		if count == 0 {
			return true
		}
		select {
		case <-left:
		case <-timeout.C:
			return false
		}
	}
}
