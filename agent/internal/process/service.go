package process

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
	"thaw/agent/internal/settings"
)

const (
	servicePath      = "/process.Process/"
	defaultKeepAlive = 90 * time.Second
	// deliverBytes is the most output in one message.
	deliverBytes = 64 << 10
)

// Service is envd's process.Process.
type Service struct {
	Manager  *Manager
	Settings *settings.Settings
}

// Register adds the procedures of the service.
func (s *Service) Register(mux *http.ServeMux) {
	mux.Handle(servicePath+"List", connect.Unary(s.list))
	mux.Handle(servicePath+"Start", connect.ServerStream(s.start))
	mux.Handle(servicePath+"Connect", connect.ServerStream(s.connect))
	mux.Handle(servicePath+"Update", connect.Unary(s.update))
	mux.Handle(servicePath+"StreamInput", connect.ClientStream(s.streamInput))
	mux.Handle(servicePath+"SendInput", connect.Unary(s.sendInput))
	mux.Handle(servicePath+"SendSignal", connect.Unary(s.sendSignal))
	mux.Handle(servicePath+"CloseStdin", connect.Unary(s.closeStdin))
}

type empty struct{}

type info struct {
	Config Config  `json:"config"`
	PID    int     `json:"pid"`
	Tag    *string `json:"tag,omitempty"`
}

type listResponse struct {
	Processes []info `json:"processes"`
}

func (s *Service) list(context.Context, *http.Request, *empty) (*listResponse, error) {
	list := &listResponse{Processes: []info{}}
	for _, p := range s.Manager.Running() {
		list.Processes = append(list.Processes, info{Config: p.Config, PID: p.PID, Tag: p.Tag})
	}
	return list, nil
}

type startRequest struct {
	Process *Config `json:"process"`
	PTY     *PTY    `json:"pty"`
	Tag     *string `json:"tag"`
	Stdin   *bool   `json:"stdin"`
}

func (s *Service) start(ctx context.Context, r *http.Request, req *startRequest, out *connect.Sender) error {
	if req.Process == nil {
		return connect.Errorf(connect.InvalidArgument, "the request names no process")
	}
	user, err := CallUser(s.Settings, r)
	if err != nil {
		return err
	}
	timeout, failure := connect.Timeout(r)
	if failure != nil {
		return failure
	}
	// Clients from before the field was there always had a stdin.
	stdin := req.Stdin == nil || *req.Stdin
	p, reader, err := s.Manager.Start(Spec{
		Config: *req.Process, PTY: req.PTY, Tag: req.Tag, Stdin: stdin, User: user, Timeout: timeout,
	})
	if err != nil {
		return err
	}
	defer reader.Detach()
	return deliver(ctx, r, p, reader, out)
}

type connectRequest struct {
	Process Selector `json:"process"`
	Offset  *Offsets `json:"offset"`
}

func (s *Service) connect(ctx context.Context, r *http.Request, req *connectRequest, out *connect.Sender) error {
	p, err := s.Manager.Find(req.Process, true)
	if err != nil {
		return err
	}
	reader := p.Attach(req.Offset)
	defer reader.Detach()
	return deliver(ctx, r, p, reader, out)
}

// deliver sends the events of a process until it ends or the caller goes.
func deliver(ctx context.Context, r *http.Request, p *Process, reader *Reader, out *connect.Sender) error {
	type start struct {
		PID    int     `json:"pid"`
		Offset Offsets `json:"offset"`
	}
	if err := out.Send(event("start", start{p.PID, reader.Offsets()})); err != nil {
		return err
	}
	interval := KeepAliveInterval(r)
	alive := time.NewTicker(interval)
	defer alive.Stop()
	buffer := make([]byte, deliverBytes)
	var message []byte
	for {
		next := reader.take(buffer)
		switch {
		case next.lost:
			return connect.Errorf(connect.DataLoss,
				"this reader of %s is more than %d bytes behind the others; connect again with an offset to go on with what is kept", next.channel, ringBytes)
		case next.end != nil && ctx.Err() != nil:
			// Its deadline killed it: the caller asked for that error, not for the signal.
			return ctx.Err()
		case next.end != nil:
			return out.Send(event("end", next.end))
		case len(next.data) > 0:
			message = append(message[:0], `{"event":{"data":{"`...)
			message = append(message, next.channel...)
			message = append(message, `":"`...)
			message = base64.StdEncoding.AppendEncode(message, next.data)
			message = append(message, `"}}}`...)
			if err := out.SendRaw(message); err != nil {
				return err
			}
			alive.Reset(interval)
			if ctx.Err() == nil {
				continue
			}
		}
		select {
		case <-reader.wake:
		case <-alive.C:
			if err := out.Send(event("keepalive", empty{})); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func event(name string, value any) any {
	return map[string]any{"event": map[string]any{name: value}}
}

// KeepAliveInterval is how often a silent stream shows that it lives.
func KeepAliveInterval(r *http.Request) time.Duration {
	seconds, err := strconv.Atoi(r.Header.Get("Keepalive-Ping-Interval"))
	if err != nil || seconds <= 0 || seconds > 24*3600 {
		return defaultKeepAlive
	}
	return time.Duration(seconds) * time.Second
}

// CallUser is the user of a call: HTTP Basic with an empty password, or the default one.
func CallUser(settings *settings.Settings, r *http.Request) (*account.User, error) {
	name, _, ok := r.BasicAuth()
	if !ok && r.Header.Get("Authorization") != "" {
		return nil, connect.Errorf(connect.Unauthenticated, "the user of a call is given by HTTP Basic with an empty password")
	}
	user, err := settings.User(name)
	var foreign *account.ForeignUserError
	if errors.As(err, &foreign) {
		return nil, connect.Errorf(connect.PermissionDenied, "%v", err)
	}
	if err != nil {
		return nil, connect.Errorf(connect.Unauthenticated, "invalid username: '%s': %v", name, err)
	}
	return user, nil
}

type updateRequest struct {
	Process Selector `json:"process"`
	PTY     *PTY     `json:"pty"`
}

func (s *Service) update(_ context.Context, _ *http.Request, req *updateRequest) (*empty, error) {
	p, err := s.Manager.Find(req.Process, false)
	if err != nil {
		return nil, err
	}
	if req.PTY == nil {
		return &empty{}, nil
	}
	if p.terminal == nil {
		return nil, errNoTerminal(p)
	}
	return &empty{}, resize(p.terminal, req.PTY.Size)
}

func errNoTerminal(p *Process) error {
	return connect.Errorf(connect.FailedPrecondition, "tty not assigned to process %d", p.PID)
}

type inputData struct {
	Stdin *[]byte `json:"stdin"`
	Pty   *[]byte `json:"pty"`
}

func (p *Process) send(ctx context.Context, data inputData) error {
	switch {
	case data.Pty != nil && p.terminal == nil:
		return errNoTerminal(p)
	case data.Pty != nil:
		return p.input.write(ctx, *data.Pty)
	case data.Stdin != nil && p.terminal != nil:
		return connect.Errorf(connect.FailedPrecondition, "process %d has a terminal: send its input as pty, not stdin", p.PID)
	case data.Stdin != nil:
		return p.input.write(ctx, *data.Stdin)
	}
	return connect.Errorf(connect.InvalidArgument, "the input holds neither stdin nor pty")
}

type sendInputRequest struct {
	Process Selector  `json:"process"`
	Input   inputData `json:"input"`
}

func (s *Service) sendInput(ctx context.Context, _ *http.Request, req *sendInputRequest) (*empty, error) {
	p, err := s.Manager.Find(req.Process, false)
	if err != nil {
		return nil, err
	}
	return &empty{}, p.send(ctx, req.Input)
}

type streamInputRequest struct {
	Start *struct {
		Process Selector `json:"process"`
	} `json:"start"`
	Data *struct {
		Input inputData `json:"input"`
	} `json:"data"`
	KeepAlive *empty `json:"keepalive"`
}

func (s *Service) streamInput(ctx context.Context, _ *http.Request, in *connect.Receiver) (*empty, error) {
	var p *Process
	for {
		body, err := in.Next()
		if errors.Is(err, io.EOF) {
			return &empty{}, nil
		}
		if err != nil {
			return nil, err
		}
		var req streamInputRequest
		if failure := connect.Decode(body, &req); failure != nil {
			return nil, failure
		}
		switch {
		case req.Start != nil:
			p, err = s.Manager.Find(req.Start.Process, false)
		case req.Data != nil && p == nil:
			err = connect.Errorf(connect.InvalidArgument, "the first message of the stream must be start")
		case req.Data != nil:
			err = p.send(ctx, req.Data.Input)
		}
		if err != nil {
			return nil, err
		}
	}
}

// signalName is an enum of the protocol: a name, or its number.
type signalName syscall.Signal

func (s *signalName) UnmarshalJSON(text []byte) error {
	var name string
	if err := json.Unmarshal(text, &name); err != nil {
		var number int
		if err := json.Unmarshal(text, &number); err != nil {
			return err
		}
		*s = signalName(number)
		return nil
	}
	*s = map[string]signalName{"SIGNAL_SIGTERM": signalName(syscall.SIGTERM), "SIGNAL_SIGKILL": signalName(syscall.SIGKILL)}[name]
	return nil
}

type sendSignalRequest struct {
	Process Selector   `json:"process"`
	Signal  signalName `json:"signal"`
	Group   bool       `json:"group"`
}

func (s *Service) sendSignal(_ context.Context, _ *http.Request, req *sendSignalRequest) (*empty, error) {
	p, err := s.Manager.Find(req.Process, false)
	if err != nil {
		return nil, err
	}
	wanted := syscall.Signal(req.Signal)
	// envd knows these two by name; for a group every signal of POSIX can be given by its number.
	if wanted != syscall.SIGTERM && wanted != syscall.SIGKILL && (!req.Group || wanted < 1 || wanted > 31) {
		return nil, connect.Errorf(connect.InvalidArgument, "the signal must be SIGNAL_SIGTERM or SIGNAL_SIGKILL, or for a group a number from 1 to 31")
	}
	return &empty{}, s.Manager.Signal(p, wanted, req.Group)
}

type closeStdinRequest struct {
	Process Selector `json:"process"`
}

func (s *Service) closeStdin(_ context.Context, _ *http.Request, req *closeStdinRequest) (*empty, error) {
	p, err := s.Manager.Find(req.Process, false)
	if err != nil {
		return nil, err
	}
	if p.terminal != nil {
		return nil, connect.Errorf(connect.FailedPrecondition, "a terminal cannot be closed like stdin: send it Ctrl+D (0x04)")
	}
	if !p.input.isOpen() {
		return nil, connect.Errorf(connect.FailedPrecondition, "stdin is closed already, or was not enabled when the process started")
	}
	p.input.close()
	return &empty{}, nil
}
