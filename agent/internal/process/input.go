package process

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"thaw/agent/internal/connect"
)

// input is what a process reads. Writers take turns, and give up with their context when the process does not read.
type input struct {
	turn chan struct{}

	mu     sync.Mutex
	file   *os.File
	shared bool // A terminal is one file for both directions, and whoever reads its output closes it.
}

func (i *input) open(file *os.File, shared bool) {
	i.turn, i.file, i.shared = make(chan struct{}, 1), file, shared
}

func (i *input) write(ctx context.Context, data []byte) error {
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	i.mu.Lock()
	file := i.file
	i.mu.Unlock()
	if file == nil {
		return connect.Errorf(connect.FailedPrecondition, "stdin is closed, or was not enabled when the process started (stdin: true)")
	}
	_ = file.SetWriteDeadline(time.Time{})
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = file.SetWriteDeadline(time.Unix(1, 0))
		close(done)
	})
	written, err := file.Write(data)
	if !stop() {
		// The old deadline must not hit the next writer.
		<-done
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		failure := connect.AsError(ctx, ctx.Err())
		return connect.Errorf(failure.Code, "the process took %d of %d bytes and then read no more: %s", written, len(data), failure.Message)
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EIO), errors.Is(err, os.ErrClosed):
		return connect.Errorf(connect.FailedPrecondition, "the process has closed its input")
	}
	return err
}

// close ends the input; a second call does nothing.
func (i *input) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.file != nil && !i.shared {
		_ = i.file.Close()
	}
	i.file = nil
}

func (i *input) isOpen() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.file != nil
}
