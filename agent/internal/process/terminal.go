package process

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"thaw/agent/internal/connect"
)

// Size of a terminal in characters.
type Size struct {
	Cols uint32 `json:"cols"`
	Rows uint32 `json:"rows"`
}

// PTY asks for a terminal.
type PTY struct {
	Size *Size `json:"size"`
}

// openTerminal makes a pseudo-terminal. Package creack/pty would do, but leaves the master in blocking mode, where a
// read has no deadline: a child that keeps the terminal would keep the end of its process from being told.
func openTerminal() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	err = control(master, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
		if err == nil {
			slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
		}
		return err
	})
	if err != nil {
		_ = master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}

// resize sets the size of a terminal; programs in it get SIGWINCH.
func resize(master *os.File, size *Size) error {
	if size == nil || size.Cols == 0 || size.Rows == 0 || size.Cols > 65535 || size.Rows > 65535 {
		return connect.Errorf(connect.InvalidArgument, "the size of a terminal needs cols and rows from 1 to 65535")
	}
	err := control(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(size.Cols), Row: uint16(size.Rows)})
	})
	if err != nil {
		return connect.Errorf(connect.FailedPrecondition, "the terminal is gone: %v", err)
	}
	return nil
}

func control(file *os.File, fn func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = fn(int(fd)) }); err != nil {
		return err
	}
	return failure
}
