package server

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"thaw/agent/internal/connect"
	"thaw/agent/internal/files"
	"thaw/agent/internal/process"
)

const (
	beforeSnapshot = "/etc/thaw/before-snapshot.d"
	afterRestore   = "/etc/thaw/after-restore.d"
	hookTimeout    = 5 * time.Second
)

type hookResult struct {
	Name     string `json:"name"`
	ExitCode int    `json:"exitCode"`
	Output   string `json:"output"`
}

type snapshotResponse struct {
	Hooks []hookResult `json:"hooks"`
}

// prepareSnapshot brings the agent to where its memory can be frozen: no calls, no connections, nothing of the kernel
// that a snapshot cannot carry. Only listeners stay. The answer is the last thing on its connection. The body may name the
// token by which whoever resumes is known: a snapshot should not hold the token of its sandbox.
func (s *Server) prepareSnapshot(w http.ResponseWriter, r *http.Request) {
	req, failure := readInit(w, r)
	if failure != nil {
		files.WriteError(w, failure)
		return
	}
	s.change.Lock()
	defer s.change.Unlock()
	w.Header().Set("Connection", "close")
	s.gate.close()
	hooks, err := s.runHooks(beforeSnapshot)
	if err == nil {
		err = s.apply(&initRequest{AccessToken: req.AccessToken})
	}
	if err != nil {
		s.gate.open()
		files.WriteError(w, connect.AsError(r.Context(), err))
		return
	}
	s.watchers.Suspend()
	// Acting for users (setfsuid) takes this flag away, and a process that was restored cannot be dumped again without it.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	own, _ := r.Context().Value(connKey{}).(net.Conn)
	s.conns.closeAll(own)
	// The end of this answer is the end of its connection: whoever has heard all of it may freeze what is left of us.
	w.Header().Set("Transfer-Encoding", "identity")
	w.Header().Set("Content-Type", "application/json")
	if body, err := connect.Encode(snapshotResponse{hooks}); err == nil {
		_, _ = w.Write(body)
	}
	_ = http.NewResponseController(w).Flush()
}

// resumeSnapshot gives the parent, or a restored clone, its identity and lets calls in again. When a hook fails, none get in.
func (s *Server) resumeSnapshot(w http.ResponseWriter, r *http.Request) {
	req, failure := readInit(w, r)
	if failure != nil {
		files.WriteError(w, failure)
		return
	}
	s.change.Lock()
	defer s.change.Unlock()
	err := s.apply(req)
	hooks := []hookResult{}
	if err == nil && req.Restored {
		hooks, err = s.runHooks(afterRestore)
	}
	if err != nil {
		files.WriteError(w, connect.AsError(r.Context(), err))
		return
	}
	if s.gate.isClosed() {
		s.watchers.Resume()
		s.gate.open()
	}
	connect.WriteJSON(w, http.StatusOK, snapshotResponse{hooks})
}

// runHooks runs the executable files of a folder by name, as the agent's own user, until one fails.
func (s *Server) runHooks(folder string) ([]hookResult, error) {
	results := []hookResult{}
	paths, _ := filepath.Glob(folder + "/*")
	sort.Strings(paths)
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			continue
		}
		result, err := s.runHook(path)
		if err != nil {
			return results, err
		}
		results = append(results, *result)
	}
	return results, nil
}

func (s *Server) runHook(path string) (*hookResult, error) {
	user, err := s.settings.OwnUser()
	if err != nil {
		return nil, err
	}
	end, output, err := s.processes.Run(process.Spec{Config: process.Config{Cmd: path}, User: user, Timeout: hookTimeout})
	if err != nil {
		return nil, err
	}
	const shown = 4096
	if len(output) > shown {
		output = output[len(output)-shown:]
	}
	if end.ExitCode != 0 {
		return nil, connect.Errorf(connect.Internal, "the hook '%s' failed or took longer than %s (%s): %s", path, hookTimeout, end.Status, output)
	}
	return &hookResult{filepath.Base(path), end.ExitCode, string(output)}, nil
}
