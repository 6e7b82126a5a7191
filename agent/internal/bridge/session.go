package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	windowBytes    = 4 << 20
	maxFrameBytes  = 256 << 10
	maxStreams     = 1024
	maxHeaderBytes = 64 << 10
	copyBytes      = 64 << 10
	// allBytes: only the windows of streams bound what arrives, so that one that nobody reads does not stop the others.
	allBytes = 1<<31 - 1
	// initialWindow is that of the specification, for streams and for the connection.
	initialWindow = 65535
)

type dialer func(authority string) (conn net.Conn, failureStatus int, err error)

// session is the server's side of an HTTP/2 connection.
type session struct {
	in     io.Reader
	framer *http2.Framer
	dial   dialer

	writing sync.Mutex // Guards the framer's writing side and the encoder.
	headers bytes.Buffer
	encoder *hpack.Encoder

	mu       sync.Mutex
	room     sync.Cond
	streams  map[uint32]*stream
	last     uint32
	closed   bool
	sendable int64
	initial  int64
	maxFrame int
	arrived  int // Bytes that the connection's window has not got back yet.
}

func newSession(in io.Reader, out io.Writer, dial dialer) *session {
	s := &session{in: in, framer: http2.NewFramer(out, in), dial: dial, streams: map[uint32]*stream{}}
	s.room.L = &s.mu
	s.encoder = hpack.NewEncoder(&s.headers)
	s.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.framer.MaxHeaderListSize = maxHeaderBytes
	s.framer.SetMaxReadFrameSize(maxFrameBytes)
	s.sendable, s.initial, s.maxFrame = initialWindow, initialWindow, 16384
	return s
}

func (s *session) run() error {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(s.in, preface); err != nil || string(preface) != http2.ClientPreface {
		return errors.New("stdin does not speak HTTP/2 with prior knowledge")
	}
	err := s.write(func() error {
		err := s.framer.WriteSettings(
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: windowBytes},
			http2.Setting{ID: http2.SettingMaxFrameSize, Val: maxFrameBytes},
			http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: maxStreams},
		)
		if err == nil {
			err = s.framer.WriteWindowUpdate(0, allBytes-initialWindow)
		}
		return err
	})
	for err == nil {
		err = s.readFrame()
	}
	s.close()
	var failure http2.ConnectionError
	if errors.As(err, &failure) {
		_ = s.write(func() error { return s.framer.WriteGoAway(s.last, http2.ErrCode(failure), nil) })
		return fmt.Errorf("the other side broke HTTP/2: %w", err)
	}
	// The other side is gone: that is how a bridge ends.
	return nil
}

func (s *session) write(fn func() error) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return fn()
}

func (s *session) readFrame() error {
	frame, err := s.framer.ReadFrame()
	var failure http2.StreamError
	if errors.As(err, &failure) {
		return s.write(func() error { return s.framer.WriteRSTStream(failure.StreamID, failure.Code) })
	}
	if err != nil {
		return err
	}
	switch frame := frame.(type) {
	case *http2.MetaHeadersFrame:
		return s.open(frame)
	case *http2.DataFrame:
		return s.data(frame)
	case *http2.RSTStreamFrame:
		if st := s.find(frame.StreamID); st != nil {
			s.forget(st)
		}
	case *http2.WindowUpdateFrame:
		s.mu.Lock()
		defer s.mu.Unlock()
		if frame.StreamID == 0 {
			s.sendable += int64(frame.Increment)
		} else if st := s.streams[frame.StreamID]; st != nil {
			st.sendable += int64(frame.Increment)
		}
		s.room.Broadcast()
	case *http2.SettingsFrame:
		return s.settings(frame)
	case *http2.PingFrame:
		if !frame.IsAck() {
			return s.write(func() error { return s.framer.WritePing(true, frame.Data) })
		}
	}
	return nil
}

func (s *session) settings(frame *http2.SettingsFrame) error {
	if frame.IsAck() {
		return nil
	}
	s.mu.Lock()
	if value, ok := frame.Value(http2.SettingInitialWindowSize); ok {
		for _, st := range s.streams {
			st.sendable += int64(value) - s.initial
		}
		s.initial = int64(value)
	}
	if value, ok := frame.Value(http2.SettingMaxFrameSize); ok {
		s.maxFrame = int(value)
	}
	s.room.Broadcast()
	s.mu.Unlock()
	return s.write(func() error {
		if value, ok := frame.Value(http2.SettingHeaderTableSize); ok {
			s.encoder.SetMaxDynamicTableSizeLimit(value)
		}
		return s.framer.WriteSettingsAck()
	})
}

func (s *session) open(frame *http2.MetaHeadersFrame) error {
	if st := s.find(frame.StreamID); st != nil {
		// Trailers.
		st.arrive(nil, frame.StreamEnded())
		return nil
	}
	s.mu.Lock()
	if frame.StreamID%2 == 0 || frame.StreamID <= s.last {
		s.mu.Unlock()
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	s.last = frame.StreamID
	st := newStream(frame.StreamID, s.initial)
	isFull := len(s.streams) >= maxStreams
	if !isFull {
		s.streams[st.id] = st
	}
	s.mu.Unlock()
	if isFull {
		return s.write(func() error { return s.framer.WriteRSTStream(st.id, http2.ErrCodeRefusedStream) })
	}
	if frame.StreamEnded() {
		st.arrive(nil, true)
	}
	method, authority := frame.PseudoValue("method"), frame.PseudoValue("authority")
	go s.serve(st, method, authority)
	return nil
}

func (s *session) serve(st *stream, method, authority string) {
	defer s.forget(st)
	if method != "CONNECT" {
		s.refuse(st, 405, "only CONNECT is served")
		return
	}
	conn, status, err := s.dial(authority)
	if err != nil {
		s.refuse(st, status, err.Error())
		return
	}
	if s.respond(st, 200) != nil {
		_ = conn.Close()
		return
	}
	carry(s, st, conn)
}

func (s *session) refuse(st *stream, status int, message string) {
	if s.respond(st, status) == nil {
		_ = s.send(st, []byte(message+"\n"), true)
	}
}

func (s *session) respond(st *stream, status int) error {
	return s.write(func() error {
		s.headers.Reset()
		if err := s.encoder.WriteField(hpack.HeaderField{Name: ":status", Value: strconv.Itoa(status)}); err != nil {
			return err
		}
		return s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: st.id, BlockFragment: s.headers.Bytes(), EndHeaders: true})
	})
}

func (s *session) data(frame *http2.DataFrame) error {
	s.mu.Lock()
	s.arrived += int(frame.Header().Length)
	back := s.arrived
	if back >= windowBytes {
		s.arrived = 0
	}
	st := s.streams[frame.StreamID]
	s.mu.Unlock()
	if back >= windowBytes {
		if err := s.write(func() error { return s.framer.WriteWindowUpdate(0, uint32(back)) }); err != nil {
			return err
		}
	}
	if st == nil {
		// It was reset from here a moment ago.
		return nil
	}
	if !st.arrive(frame.Data(), frame.StreamEnded()) {
		s.reset(st)
		return nil
	}
	if padding := int(frame.Header().Length) - len(frame.Data()); padding > 0 {
		return s.write(func() error { return s.framer.WriteWindowUpdate(st.id, uint32(padding)) })
	}
	return nil
}

// consumed gives the window of a stream back, in pieces that are worth a frame.
func (s *session) consumed(st *stream, count int) {
	st.mu.Lock()
	st.waiting -= count
	st.unreturned += count
	back := st.unreturned
	if back >= windowBytes/4 {
		st.unreturned = 0
	}
	isOpen := !st.ended && !st.gone
	st.mu.Unlock()
	if back >= windowBytes/4 && isOpen {
		_ = s.write(func() error { return s.framer.WriteWindowUpdate(st.id, uint32(back)) })
	}
}

// send waits until the windows of the stream and of the connection let the data through.
func (s *session) send(st *stream, data []byte, last bool) error {
	for {
		piece, err := s.takeWindow(st, len(data))
		if err != nil {
			return err
		}
		ends := last && piece == len(data)
		if err := s.write(func() error { return s.framer.WriteData(st.id, ends, data[:piece]) }); err != nil {
			return err
		}
		if data = data[piece:]; len(data) == 0 {
			return nil
		}
	}
}

func (s *session) takeWindow(st *stream, wanted int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.closed || s.streams[st.id] != st {
			return 0, errReset
		}
		piece := min(int64(wanted), int64(s.maxFrame), s.sendable, st.sendable)
		if wanted == 0 || piece > 0 {
			piece = max(piece, 0)
			s.sendable -= piece
			st.sendable -= piece
			return int(piece), nil
		}
		s.room.Wait()
	}
}

func (s *session) find(id uint32) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[id]
}

// reset tells the other side that the stream failed.
func (s *session) reset(st *stream) {
	_ = s.write(func() error { return s.framer.WriteRSTStream(st.id, http2.ErrCodeInternal) })
	s.forget(st)
}

func (s *session) forget(st *stream) {
	s.mu.Lock()
	delete(s.streams, st.id)
	s.room.Broadcast()
	s.mu.Unlock()
	st.drop()
}

func (s *session) close() {
	s.mu.Lock()
	s.closed = true
	var all []*stream
	for _, st := range s.streams {
		all = append(all, st)
	}
	s.room.Broadcast()
	s.mu.Unlock()
	for _, st := range all {
		st.drop()
	}
}
