// Package settings holds what the server told the agent about this sandbox: its token, variables and defaults.
package settings

import (
	"crypto/subtle"
	"maps"
	"path/filepath"
	"sync"

	"thaw/agent/internal/account"
)

// Settings are safe for use by several goroutines. The zero value is a sandbox that was told nothing yet.
type Settings struct {
	// RootDir, where set, takes the place of home directories: sandboxes of the process driver share the host's files.
	RootDir string

	mu      sync.RWMutex
	token   string
	env     map[string]string
	user    string
	workdir string
}

// Change holds new values; nil leaves the old one.
type Change struct {
	Token   *string
	Env     map[string]string
	User    *string
	Workdir *string
}

// Apply takes over a change as a whole.
func (s *Settings) Apply(change Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if change.Token != nil {
		s.token = *change.Token
	}
	if change.Env != nil {
		s.env = maps.Clone(change.Env)
	}
	if change.User != nil {
		s.user = *change.User
	}
	if change.Workdir != nil {
		s.workdir = *change.Workdir
	}
}

// Authorized compares in constant time. Without a token everybody is.
func (s *Settings) Authorized(token string) bool {
	wanted := s.Token()
	return wanted == "" || subtle.ConstantTimeCompare([]byte(wanted), []byte(token)) == 1
}

// Token is empty until one was set.
func (s *Settings) Token() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.token
}

// Env is a copy of the variables of every process.
func (s *Settings) Env() map[string]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	env := maps.Clone(s.env)
	if env == nil {
		env = map[string]string{}
	}
	return env
}

// User finds the account of a call; the empty name is the default user.
func (s *Settings) User(name string) (*account.User, error) {
	if name == "" {
		s.mu.RLock()
		name = s.user
		s.mu.RUnlock()
	}
	user, err := account.Lookup(name)
	if err == nil && s.RootDir != "" {
		user.Home = s.RootDir
	}
	return user, err
}

// Workdir is where processes of a user start when the call names no directory. It may not exist.
func (s *Settings) Workdir(user *account.User) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.workdir == "" {
		return user.Home
	}
	return Resolve(user, s.workdir)
}

// Resolve makes a path absolute; relative ones, and ~, start at the user's home directory.
func Resolve(user *account.User, path string) string {
	if path == "~" {
		return filepath.Clean(user.Home)
	}
	if len(path) > 1 && path[:2] == "~/" {
		path = path[2:]
	}
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(user.Home, path)
}

// OwnUser is the account of the agent itself.
func (s *Settings) OwnUser() (*account.User, error) {
	user, err := account.Lookup("")
	if err == nil && s.RootDir != "" {
		user.Home = s.RootDir
	}
	return user, err
}
