package process

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stopGrace is what processes get between SIGTERM and SIGKILL.
const stopGrace = 5 * time.Second

// Stop ends every process below the agent, orphans included, and returns when none is left.
func (m *Manager) Stop() {
	m.mu.Lock()
	m.stopped = true
	m.mu.Unlock()
	signalAll(syscall.SIGTERM)
	// Shells that wait for input ignore SIGTERM.
	signalAll(syscall.SIGHUP)
	killing := time.AfterFunc(stopGrace, func() { m.killUntilGone() })
	defer killing.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for !m.abandoned && hasChildren() {
		m.idle.Wait()
	}
}

// killUntilGone repeats: a process may fork between the look at the list and the signal. What the kernel does not
// let go of after as long again is abandoned.
func (m *Manager) killUntilGone() {
	for end := time.Now().Add(stopGrace); time.Now().Before(end); {
		signalAll(syscall.SIGKILL)
		time.Sleep(20 * time.Millisecond)
		m.reap()
		if !hasChildren() {
			return
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.abandoned = true
	m.idle.Broadcast()
}

// hasChildren looks without reaping.
func hasChildren() bool {
	for _, parent := range parents() {
		if parent == os.Getpid() {
			return true
		}
	}
	return false
}

func signalAll(signal syscall.Signal) {
	if os.Getpid() == 1 {
		_ = syscall.Kill(-1, signal)
		return
	}
	for _, pid := range Descendants(os.Getpid()) {
		_ = syscall.Kill(pid, signal)
	}
}

// Descendants lists the processes below pid.
func Descendants(pid int) []int {
	children := map[int][]int{}
	for child, parent := range parents() {
		children[parent] = append(children[parent], child)
	}
	var found []int
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		found = append(found, children[queue[0]]...)
		queue = append(queue, children[queue[0]]...)
	}
	return found
}

// parents maps each process that is visible here to its parent.
func parents() map[int]int {
	found := map[int]int{}
	proc, err := os.Open("/proc")
	if err != nil {
		return found
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		// The name in parentheses may hold anything: the fields begin after its last one.
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			found[pid] = parent
		}
	}
	return found
}
