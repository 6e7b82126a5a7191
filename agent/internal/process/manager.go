package process

import (
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thaw/agent/internal/connect"
	"thaw/agent/internal/settings"
)

// What is kept of processes that have ended, so that a reader that lost its stream still learns the end.
const (
	keepEnded      = 30 * time.Second
	keepEndedCount = 1024
	keepEndedBytes = 16 << 20
)

// Manager starts, finds and reaps processes.
//
// As PID 1 the agent inherits every orphan of the sandbox, so one loop waits for any child and hands the status of
// its own ones to their Process. mu keeps a pid from being reaped, and so from being used again, while somebody
// starts or signals it.
type Manager struct {
	settings *settings.Settings

	mu      sync.Mutex
	running map[int]*Process
	ended   []*Process
	idle    sync.Cond
	stopped bool
	// abandoned: Stop waits no longer.
	abandoned bool
}

// NewManager begins to reap children of this process: there must be only one, and nothing else may wait for children.
func NewManager(settings *settings.Settings) *Manager {
	m := &Manager{settings: settings, running: map[int]*Process{}}
	m.idle.L = &m.mu
	// Orphans of our processes come to us also where we are not PID 1.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	go func() {
		for range signals {
			m.reap()
		}
	}()
	return m
}

func (m *Manager) reap() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			m.idle.Broadcast()
			return
		}
		if p, ok := m.running[pid]; ok {
			delete(m.running, pid)
			p.exited(endOf(status))
			m.keep(p)
		}
	}
}

// keep remembers an ended process for a while. The caller holds mu.
func (m *Manager) keep(p *Process) {
	m.ended = append(m.ended, p)
	total := 0
	for i := len(m.ended) - 1; i >= 0; i-- {
		total += m.ended[i].heldBytes()
		if i < len(m.ended)-1 && (total > keepEndedBytes || len(m.ended)-i > keepEndedCount) {
			m.ended = append([]*Process(nil), m.ended[i+1:]...)
			break
		}
	}
	m.forgetLater(p)
}

func (m *Manager) forgetLater(p *Process) {
	time.AfterFunc(keepEnded, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for i, other := range m.ended {
			if other != p {
				continue
			}
			if p.idle() {
				m.ended = append(m.ended[:i:i], m.ended[i+1:]...)
			} else {
				m.forgetLater(p)
			}
			return
		}
	})
}

// Selector names a process.
type Selector struct {
	PID *int    `json:"pid"`
	Tag *string `json:"tag"`
}

// Find returns a process that runs or, when wanted, one that ended a moment ago.
func (m *Manager) Find(selector Selector, orEnded bool) (*Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	matches := func(p *Process) bool {
		if selector.PID != nil {
			return p.PID == *selector.PID
		}
		return p.Tag != nil && *p.Tag == *selector.Tag
	}
	if selector.PID == nil && selector.Tag == nil {
		return nil, connect.Errorf(connect.InvalidArgument, "name the process by pid or tag")
	}
	for _, p := range m.running {
		if matches(p) {
			return p, nil
		}
	}
	for i := len(m.ended) - 1; orEnded && i >= 0; i-- {
		if matches(m.ended[i]) {
			return m.ended[i], nil
		}
	}
	if selector.PID != nil {
		return nil, connect.Errorf(connect.NotFound, "process with pid %d not found", *selector.PID)
	}
	return nil, connect.Errorf(connect.NotFound, "process with tag '%s' not found", *selector.Tag)
}

// Running lists the processes that callers started and that have not ended.
func (m *Manager) Running() []*Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]*Process, 0, len(m.running))
	for _, p := range m.running {
		list = append(list, p)
	}
	return list
}

// Signal reaches the process alone, or with group also the children that did not leave its process group.
func (m *Manager) Signal(p *Process, signal syscall.Signal, group bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running[p.PID] != p {
		return connect.Errorf(connect.NotFound, "process with pid %d not found", p.PID)
	}
	target := p.PID
	if group {
		target = -target
	}
	if err := syscall.Kill(target, signal); err != nil {
		return connect.Errorf(connect.PermissionDenied, "process with pid %d cannot be signalled: %v", p.PID, err)
	}
	return nil
}

func itoa(n int) string { return strconv.Itoa(n) }
