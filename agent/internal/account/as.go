package account

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// As runs fn with the file permissions of user.
//
// The agent is root, its callers are not: the kernel itself has to check each path, with access lists, sticky
// directories and links that change in between. So the thread takes the user's file system ids and groups
// (setfsuid(2) also drops the capabilities that pass over file permissions), and nothing else of the agent changes.
func As(user *User, fn func() error) error {
	if int(user.UID) == os.Geteuid() && (user.UID != 0 || user.GID == 0) {
		return fn()
	}
	runtime.LockOSThread()
	before, err := unix.Getgroups()
	if err == nil {
		err = become(user.UID, user.GID, user.Groups)
	}
	if err == nil {
		err = fn()
	}
	groups := make([]uint32, len(before))
	for i, group := range before {
		groups[i] = uint32(group)
	}
	if undo := become(uint32(os.Geteuid()), uint32(os.Getegid()), groups); undo != nil {
		// The thread stays locked, so that it ends with this goroutine and nobody else gets its identity.
		return fmt.Errorf("the agent could not take its own identity back: %w", undo)
	}
	runtime.UnlockOSThread()
	return err
}

// become changes the file system identity of this thread. Groups and gid go first when leaving root and the order
// does not matter when coming back: CAP_SETUID and CAP_SETGID are not file capabilities and stay.
func become(uid, gid uint32, groups []uint32) error {
	if err := setgroups(groups); err != nil {
		return fmt.Errorf("the agent may not act for other users: %w", err)
	}
	// Both calls return the old id, also when they refuse; only a second call tells.
	_ = unix.Setfsgid(int(gid))
	if got, _ := unix.SetfsgidRetGid(-1); got != int(gid) {
		return fmt.Errorf("the agent may not act for group %d: it lacks CAP_SETGID", gid)
	}
	_ = unix.Setfsuid(int(uid))
	if got, _ := unix.SetfsuidRetUid(-1); got != int(uid) {
		return fmt.Errorf("the agent may not act for user %d: it lacks CAP_SETUID", uid)
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
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0); errno != 0 {
		return errno
	}
	return nil
}
