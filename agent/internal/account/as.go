package account

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// As runs fn with the file permissions of user.
//
// The agent is root, its callers are not: the kernel itself has to check each path, with access lists, sticky
// directories and links that change in between. So the thread takes the user's file system ids and groups
// (setfsuid(2) also drops the capabilities that pass over file permissions), and nothing else of the agent changes.
func As(user *User, fn func() error) error {
	self := identity{uint32(os.Geteuid()), uint32(os.Getegid()), nil}
	if user.UID == self.uid && (user.UID != 0 || user.GID == 0) {
		return fn()
	}
	runtime.LockOSThread()
	before, err := unix.Getgroups()
	for _, group := range before {
		self.groups = append(self.groups, uint32(group))
	}
	become := becomeForFiles
	if err == nil && !hasFileIDs() {
		become = becomeEffectively
	}
	if err == nil {
		err = become(identity{user.UID, user.GID, user.Groups})
	}
	if err == nil {
		err = fn()
	}
	if undo := become(self); undo != nil {
		// The thread stays locked, so that it ends with this goroutine and nobody else gets its identity.
		return fmt.Errorf("the agent could not take its own identity back: %w", undo)
	}
	runtime.UnlockOSThread()
	return err
}

type identity struct {
	uid, gid uint32
	groups   []uint32
}

// hasFileIDs tells whether this kernel knows identities for files alone. That of gVisor does not.
var hasFileIDs = sync.OnceValue(func() bool {
	_, _, errno := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0)
	return errno != unix.ENOSYS
})

// becomeForFiles changes the file system identity of this thread. Groups and gid go first when leaving root and the order
// does not matter when coming back: CAP_SETUID and CAP_SETGID are not file capabilities and stay.
func becomeForFiles(who identity) error {
	if err := setgroups(who.groups); err != nil {
		return fmt.Errorf("the agent may not act for other users: %w", err)
	}
	// Both calls return the old id, also when they refuse; only a second call tells.
	_ = unix.Setfsgid(int(who.gid))
	if got, _ := unix.SetfsgidRetGid(-1); got != int(who.gid) {
		return fmt.Errorf("the agent may not act for group %d: it lacks CAP_SETGID", who.gid)
	}
	_ = unix.Setfsuid(int(who.uid))
	if got, _ := unix.SetfsuidRetUid(-1); got != int(who.uid) {
		return fmt.Errorf("the agent may not act for user %d: it lacks CAP_SETUID", who.uid)
	}
	return nil
}

// becomeEffectively changes the effective ids of this thread, by the bare system calls: the functions of package syscall change
// all threads. The real and saved ids stay those of the agent, so that it can come back; the kernel takes the capabilities
// away with the effective user, and gives them back with it. Therefore the user is the first to come back, and the last to leave.
func becomeEffectively(who identity) error {
	const same = ^uintptr(0)
	steps := []func() error{
		func() error { return setgroups(who.groups) },
		func() error { return bare(unix.SYS_SETRESGID, same, uintptr(who.gid), same) },
		func() error { return bare(unix.SYS_SETRESUID, same, uintptr(who.uid), same) },
	}
	if os.Geteuid() != os.Getuid() {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("the agent may not act for other users: %w", err)
		}
	}
	return nil
}

func bare(call, a, b, c uintptr) error {
	if _, _, errno := unix.RawSyscall(call, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// setgroups is the bare system call: it changes this thread only, where the function of package syscall changes all.
func setgroups(groups []uint32) error {
	var current []uint32
	if now, err := unix.Getgroups(); err == nil {
		for _, group := range now {
			current = append(current, uint32(group))
		}
	}
	if slices.Equal(current, groups) {
		return nil
	}
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	return bare(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0)
}
