package bridge

import (
	"errors"
	"io"
	"sync"
)

var errReset = errors.New("the stream was reset")

// stream is one connection of a session. What arrives waits in pending, which the window bounds.
type stream struct {
	id uint32

	mu      sync.Mutex
	changed sync.Cond
	pending [][]byte
	waiting int // Bytes that arrived and were not consumed yet.
	// unreturned bytes were consumed, but the other side does not know yet: they still count against its window.
	unreturned int
	ended      bool
	deaf       bool
	gone       bool
	hangUp     func()
	sendable   int64 // Guarded by the session.
}

func newStream(id uint32, window int64) *stream {
	st := &stream{id: id, sendable: window}
	st.changed.L = &st.mu
	return st
}

// arrive takes data from the other side; false when it sent more than its window. The data is copied.
func (st *stream) arrive(data []byte, last bool) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.waiting += len(data)
	if st.waiting+st.unreturned > windowBytes {
		return false
	}
	if len(data) > 0 && !st.deaf {
		st.pending = append(st.pending, append([]byte(nil), data...))
	}
	st.ended = st.ended || last
	st.changed.Broadcast()
	return true
}

// receive waits for the next piece; io.EOF after the last one.
func (st *stream) receive() ([]byte, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for {
		switch {
		case st.gone:
			return nil, errReset
		case len(st.pending) > 0:
			data := st.pending[0]
			st.pending = st.pending[1:]
			return data, nil
		case st.ended:
			return nil, io.EOF
		}
		st.changed.Wait()
	}
}

func (st *stream) stopReceiving() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.deaf, st.pending = true, nil
}

// onReset sets what happens when the other side gives the stream up.
func (st *stream) onReset(hangUp func()) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.hangUp = hangUp
	if st.gone {
		hangUp()
	}
}

func (st *stream) drop() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.gone {
		return
	}
	st.gone, st.pending = true, nil
	st.changed.Broadcast()
	if st.hangUp != nil {
		st.hangUp()
	}
}
