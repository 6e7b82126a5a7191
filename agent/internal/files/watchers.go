package files

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"sync"
	"time"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
	"thaw/agent/internal/process"
)

const (
	maxWatchers = 256
	// maxPending is how many events of a watcher wait to be fetched; then the oldest go.
	maxPending = 16_384
)

// Watchers are those that clients poll. They outlive the connection that made them.
type Watchers struct {
	mu      sync.Mutex
	open    map[string]*watcher
	streams int
}

type watcher struct {
	user    *account.User
	request watchRequest
	watch   *watch

	mu      sync.Mutex
	pending []Event
	lost    bool
	failure error
}

func (s *Service) callUser(r *http.Request) (*account.User, error) {
	return process.CallUser(s.Settings, r)
}

// enter and leave count the streams, which take the same resource of the kernel.
func (ws *Watchers) enter() error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.streams+len(ws.open) >= maxWatchers {
		return connect.Errorf(connect.ResourceExhausted, "more than %d watchers are open: remove some first", maxWatchers)
	}
	ws.streams++
	return nil
}

func (ws *Watchers) leave() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.streams--
}

func (w *watcher) start() error {
	watch, err := openWatch(w.user, w.request)
	if err != nil {
		return err
	}
	w.watch = watch
	go func() {
		err := watch.run(context.Background(), w.add)
		if !errors.Is(err, errWatchClosed) {
			w.mu.Lock()
			w.failure = err
			w.mu.Unlock()
			watch.close()
		}
	}()
	return nil
}

func (w *watcher) add(event Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending) == maxPending {
		w.pending, w.lost = w.pending[1:], true
	}
	w.pending = append(w.pending, event)
	return nil
}

type createWatcherResponse struct {
	WatcherID string `json:"watcherId"`
}

func (s *Service) createWatcher(_ context.Context, r *http.Request, req *watchRequest) (*createWatcherResponse, error) {
	user, err := s.callUser(r)
	if err != nil {
		return nil, err
	}
	if err := s.Watchers.enter(); err != nil {
		return nil, err
	}
	defer s.Watchers.leave()
	w := &watcher{user: user, request: *req}
	if err := w.start(); err != nil {
		return nil, err
	}
	id := "w" + rand.Text()
	s.Watchers.mu.Lock()
	defer s.Watchers.mu.Unlock()
	if s.Watchers.open == nil {
		s.Watchers.open = map[string]*watcher{}
	}
	s.Watchers.open[id] = w
	return &createWatcherResponse{id}, nil
}

type watcherRequest struct {
	WatcherID string `json:"watcherId"`
}

type eventsResponse struct {
	Events []Event `json:"events"`
}

func (ws *Watchers) find(id string) (*watcher, error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w, ok := ws.open[id]; ok {
		return w, nil
	}
	return nil, connect.Errorf(connect.NotFound, "watcher with id %s not found", id)
}

func (s *Service) getWatcherEvents(_ context.Context, _ *http.Request, req *watcherRequest) (*eventsResponse, error) {
	w, err := s.Watchers.find(req.WatcherID)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost {
		w.lost = false
		return nil, connect.Errorf(connect.DataLoss, "more than %d events waited to be fetched: the oldest were dropped", maxPending)
	}
	// What happened before the directory went is told first, then that it is gone.
	if len(w.pending) == 0 && w.failure != nil {
		return nil, w.failure
	}
	events := w.pending
	w.pending = nil
	if events == nil {
		events = []Event{}
	}
	return &eventsResponse{events}, nil
}

func (s *Service) removeWatcher(_ context.Context, _ *http.Request, req *watcherRequest) (*empty, error) {
	w, err := s.Watchers.find(req.WatcherID)
	if err != nil {
		return nil, err
	}
	s.Watchers.mu.Lock()
	defer s.Watchers.mu.Unlock()
	delete(s.Watchers.open, req.WatcherID)
	w.watch.close()
	return &empty{}, nil
}

// Suspend closes what the kernel holds for watchers: a snapshot cannot carry it.
func (ws *Watchers) Suspend() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.open {
		w.watch.close()
	}
}

// Resume opens them again, in the parent and in each clone. A directory that is gone is told at the next fetch.
func (ws *Watchers) Resume() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.open {
		if err := w.start(); err != nil {
			w.mu.Lock()
			w.failure = err
			w.mu.Unlock()
		}
	}
}

// stream sends the events of a watch until it ends or the caller goes.
func stream(ctx context.Context, r *http.Request, w *watch, out *connect.Sender) error {
	send := func(name string, value any) error { return out.Send(map[string]any{name: value}) }
	if err := send("start", empty{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Some events wait here while the network is slow; then the kernel's queue fills, and its overflow ends the stream.
	events := make(chan Event, 1024)
	ended := make(chan error, 1)
	go func() {
		ended <- w.run(ctx, func(event Event) error {
			select {
			case events <- event:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	interval := process.KeepAliveInterval(r)
	alive := time.NewTicker(interval)
	defer alive.Stop()
	for {
		var err error
		select {
		case event := <-events:
			err = send("filesystem", event)
			alive.Reset(interval)
		case <-alive.C:
			err = send("keepalive", empty{})
		case failure := <-ended:
			for len(events) > 0 && err == nil {
				err = send("filesystem", <-events)
			}
			if err == nil {
				return failure
			}
		}
		if err != nil {
			return err
		}
	}
}
