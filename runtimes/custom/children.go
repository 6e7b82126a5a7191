//go:build linux

package main

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"unsafe"
)

// children owns every process that the launcher has to reap: the programs that it started, and, as process 1, the orphans
// that they leave. All of them are reaped in one place, so that no exit code is taken by somebody else.
type children struct {
	// Held from fork until the child is known, and from the end of a child until it is forgotten: a signal then never
	// reaches a process that was given the number of a dead one.
	mutex  sync.Mutex
	exits  map[int]chan syscall.WaitStatus
	closed bool
}

func newChildren() *children {
	group := &children{exits: map[int]chan syscall.WaitStatus{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			group.reap()
		}
	}()
	return group
}

// start runs a program as the leader of a process group of its own. The channel gets its status once.
func (group *children) start(
	path string, argv []string, attributes *syscall.ProcAttr,
) (pid int, exit <-chan syscall.WaitStatus, err error) {
	attributes.Sys = &syscall.SysProcAttr{Setpgid: true}
	group.mutex.Lock()
	defer group.mutex.Unlock()
	if group.closed {
		return 0, nil, syscall.ESHUTDOWN
	}
	pid, err = syscall.ForkExec(path, argv, attributes)
	if err != nil {
		return 0, nil, err
	}
	ended := make(chan syscall.WaitStatus, 1)
	group.exits[pid] = ended
	return pid, ended, nil
}

// kill ends a program and its group, unless the program has ended already.
func (group *children) kill(pid int) {
	group.mutex.Lock()
	defer group.mutex.Unlock()
	if _, running := group.exits[pid]; running {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
}

// killAll ends all programs with their groups; none is started any more.
func (group *children) killAll() {
	group.mutex.Lock()
	defer group.mutex.Unlock()
	group.closed = true
	for pid := range group.exits {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
}

// reap takes all children that have ended. One signal may stand for several of them.
func (group *children) reap() {
	group.mutex.Lock()
	defer group.mutex.Unlock()
	for {
		pid := endedChild()
		if pid == 0 {
			return
		}
		ended, ours := group.exits[pid]
		if ours {
			// While the leader is not yet reaped nobody else can have the group's number.
			_ = syscall.Kill(-pid, syscall.SIGKILL)
		}
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err == syscall.EINTR {
			continue
		}
		if ours {
			delete(group.exits, pid)
			ended <- status
		}
	}
}

// endedChild returns the number of a child that has ended, and leaves it unreaped; 0 when there is none.
func endedChild() int {
	// waitid(2), which the syscall package lacks.
	const (
		anyChild = 0
		noHang   = 0x1
		exited   = 0x4
		noWait   = 0x1000000
	)
	// siginfo_t of 64-bit Linux: three ints, padding, then si_pid.
	var info struct {
		_   [16]byte
		pid int32
		_   [108]byte
	}
	for {
		_, _, errno := syscall.Syscall6(
			syscall.SYS_WAITID, anyChild, 0, uintptr(unsafe.Pointer(&info)), exited|noHang|noWait, 0, 0,
		)
		switch errno {
		case 0:
			return int(info.pid)
		case syscall.EINTR:
			continue
		default:
			return 0
		}
	}
}
