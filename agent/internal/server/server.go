// Package server is the agent's HTTP interface: who may call, and which part answers.
package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"thaw/agent/internal/connect"
	"thaw/agent/internal/files"
	"thaw/agent/internal/process"
	"thaw/agent/internal/settings"
	"thaw/agent/internal/stats"
)

const (
	tokenHeader    = "X-Access-Token"
	maxHeaderBytes = 64 << 10
)

// Server serves the agent's interface on any number of listeners.
type Server struct {
	settings  *settings.Settings
	processes *process.Manager
	watchers  *files.Watchers
	gate      *gate
	conns     connections
	http      *http.Server

	change sync.Mutex // One init or snapshot call at a time.
	main   bool       // The service process was started.
}

type connKey struct{}

// New joins the parts.
func New(settings *settings.Settings, processes *process.Manager) *Server {
	s := &Server{settings: settings, processes: processes, watchers: &files.Watchers{}, gate: newGate()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", s.health)
	mux.HandleFunc("POST /init", s.init)
	mux.HandleFunc("GET /envs", func(w http.ResponseWriter, _ *http.Request) { connect.WriteJSON(w, http.StatusOK, settings.Env()) })
	mux.HandleFunc("GET /tunnel", s.tunnel)
	mux.HandleFunc("POST /snapshot/prepare", s.prepareSnapshot)
	mux.HandleFunc("POST /snapshot/resume", s.resumeSnapshot)
	(&process.Service{Manager: processes, Settings: settings}).Register(mux)
	(&files.Service{Settings: settings, Watchers: s.watchers}).Register(mux)
	stats.Register(mux)
	s.http = &http.Server{
		Handler:           s.guard(mux),
		MaxHeaderBytes:    maxHeaderBytes,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       10 * time.Minute,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
	}
	return s
}

// Serve answers on a listener until Close.
func (s *Server) Serve(listener net.Listener) error { return s.http.Serve(s.conns.listener(listener)) }

// Close ends listeners and connections.
func (s *Server) Close() {
	_ = s.http.Close()
	s.conns.closeAll(nil)
}

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

// guard lets calls through that carry the token, while no snapshot is taken.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		around := path == "/snapshot/prepare" || path == "/snapshot/resume"
		// While the gate is closed the token may be another one: whoever comes then is told to come again, whatever they show.
		if !around && s.gate.isClosed() {
			refuseForSnapshot(w, r)
			return
		}
		if path != "/health" && !s.settings.Authorized(r.Header.Get(tokenHeader)) && !s.signed(r) {
			refuse(w, r, connect.Errorf(connect.Unauthenticated, "unauthorized access: send the sandbox's token in the header %s", tokenHeader))
			return
		}
		// These two close and open the gate themselves.
		if around {
			next.ServeHTTP(w, r)
			return
		}
		entered, call := s.gate.enter(r)
		if call == nil {
			refuseForSnapshot(w, r)
			return
		}
		defer s.gate.leave(call)
		next.ServeHTTP(w, entered)
	})
}

func refuseForSnapshot(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "close")
	w.Header().Set("Retry-After", "1")
	refuse(w, r, errSnapshot)
}

// refuse answers procedures and paths each in their own form.
func refuse(w http.ResponseWriter, r *http.Request, err *connect.Error) {
	if strings.HasPrefix(r.URL.Path, "/process.") || strings.HasPrefix(r.URL.Path, "/filesystem.") {
		connect.WriteError(w, err)
		return
	}
	files.WriteError(w, err)
}

// signed checks the signature of a URL that reads or writes one file:
// "v1_" + base64 without padding of sha256("path:operation:user:token[:expiry]").
func (s *Server) signed(r *http.Request) bool {
	query := r.URL.Query()
	signature := query.Get("signature")
	if r.URL.Path != "/files" || signature == "" || r.Header.Get(tokenHeader) != "" {
		return false
	}
	operation := map[string]string{http.MethodGet: "read", http.MethodHead: "read", http.MethodPost: "write", http.MethodPut: "write"}[r.Method]
	// A form could name other paths than the signed one, and another user could come by HTTP Basic.
	if operation == "" || query.Get("path") == "" || r.Header.Get("Authorization") != "" {
		return false
	}
	text := fmt.Sprintf("%s:%s:%s:%s", query.Get("path"), operation, query.Get("username"), s.settings.Token())
	if expiry := query.Get("signature_expiration"); expiry != "" {
		seconds, err := strconv.ParseInt(expiry, 10, 64)
		if err != nil || time.Now().Unix() > seconds {
			return false
		}
		text += ":" + expiry
	}
	sum := sha256.Sum256([]byte(text))
	wanted := "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
	return subtle.ConstantTimeCompare([]byte(wanted), []byte(signature)) == 1
}
