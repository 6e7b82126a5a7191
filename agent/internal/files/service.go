package files

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
	"thaw/agent/internal/process"
	"thaw/agent/internal/settings"
)

const servicePath = "/filesystem.Filesystem/"

// maxEntries bounds the memory of one listing.
const maxEntries = 500_000

// Service is envd's filesystem.Filesystem, and the files over plain HTTP.
type Service struct {
	Settings *settings.Settings
	Watchers *Watchers
}

// Register adds the procedures and paths of the service.
func (s *Service) Register(mux *http.ServeMux) {
	mux.Handle(servicePath+"Stat", connect.Unary(s.stat))
	mux.Handle(servicePath+"MakeDir", connect.Unary(s.makeDir))
	mux.Handle(servicePath+"Move", connect.Unary(s.move))
	mux.Handle(servicePath+"ListDir", connect.Unary(s.listDir))
	mux.Handle(servicePath+"Remove", connect.Unary(s.remove))
	mux.Handle(servicePath+"WatchDir", connect.ServerStream(s.watchDir))
	mux.Handle(servicePath+"CreateWatcher", connect.Unary(s.createWatcher))
	mux.Handle(servicePath+"GetWatcherEvents", connect.Unary(s.getWatcherEvents))
	mux.Handle(servicePath+"RemoveWatcher", connect.Unary(s.removeWatcher))
	s.registerHTTP(mux)
}

type pathRequest struct {
	Path string `json:"path"`
}

type entryResponse struct {
	Entry *Entry `json:"entry"`
}

type empty struct{}

// as runs fn with the permissions of the caller, and the absolute form of path.
func (s *Service) as(r *http.Request, path string, fn func(user *account.User, path string) error) error {
	user, err := process.CallUser(s.Settings, r)
	if err != nil {
		return err
	}
	path, err = absolute(user, path)
	if err != nil {
		return err
	}
	err = account.As(user, func() error { return fn(user, path) })
	if err != nil {
		return pathError(path, err)
	}
	return nil
}

func absolute(user *account.User, path string) (string, error) {
	if strings.ContainsRune(path, 0) {
		return "", connect.Errorf(connect.InvalidArgument, "the path holds a NUL character")
	}
	return settings.Resolve(user, path), nil
}

func (s *Service) stat(_ context.Context, r *http.Request, req *pathRequest) (*entryResponse, error) {
	res := &entryResponse{}
	return res, s.as(r, req.Path, func(_ *account.User, path string) (err error) {
		res.Entry, err = entryAt(path, &account.Names{})
		return err
	})
}

func (s *Service) makeDir(_ context.Context, r *http.Request, req *pathRequest) (*entryResponse, error) {
	res := &entryResponse{}
	return res, s.as(r, req.Path, func(_ *account.User, path string) error {
		switch info, err := os.Stat(path); {
		case err == nil && info.IsDir():
			return connect.Errorf(connect.AlreadyExists, "directory already exists: %s", path)
		case err == nil:
			return connect.Errorf(connect.InvalidArgument, "path already exists but it is not a directory: %s", path)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		err := os.MkdirAll(path, 0o755)
		if err == nil {
			res.Entry, err = entryAt(path, &account.Names{})
		}
		return err
	})
}

type moveRequest struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
}

func (s *Service) move(_ context.Context, r *http.Request, req *moveRequest) (*entryResponse, error) {
	res := &entryResponse{}
	return res, s.as(r, req.Source, func(user *account.User, source string) error {
		destination, err := absolute(user, req.Destination)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(source); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(destination), 0o755); err != nil {
			return pathError(filepath.Dir(destination), err)
		}
		if err := os.Rename(source, destination); err != nil {
			return pathError(destination, err)
		}
		res.Entry, err = entryAt(destination, &account.Names{})
		return err
	})
}

func (s *Service) remove(_ context.Context, r *http.Request, req *pathRequest) (*empty, error) {
	return &empty{}, s.as(r, req.Path, func(_ *account.User, path string) error {
		if path == "/" {
			return connect.Errorf(connect.InvalidArgument, "the root directory cannot be removed")
		}
		return os.RemoveAll(path)
	})
}

type listRequest struct {
	Path  string `json:"path"`
	Depth uint32 `json:"depth"`
}

type listResponse struct {
	Entries []*Entry `json:"entries"`
}

func (s *Service) listDir(ctx context.Context, r *http.Request, req *listRequest) (*listResponse, error) {
	res := &listResponse{Entries: []*Entry{}}
	return res, s.as(r, req.Path, func(_ *account.User, path string) error {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return connect.Errorf(connect.NotFound, "directory not found: %s", path)
		}
		if err == nil && !info.IsDir() {
			err = connect.Errorf(connect.InvalidArgument, "path is not a directory: %s", path)
		}
		if err != nil {
			return err
		}
		listing := listing{ctx: ctx, entries: &res.Entries}
		return listing.add(path, max(1, int(req.Depth)))
	})
}

type listing struct {
	ctx     context.Context
	entries *[]*Entry
	names   account.Names
}

// add lists a directory, and those in it down to depth. Links to directories are listed, not followed.
func (l *listing) add(directory string, depth int) error {
	items, err := os.ReadDir(directory)
	if err != nil {
		return err
	}
	for _, item := range items {
		if temporary, _ := isTemporary(item.Name()); temporary {
			continue
		}
		if l.ctx.Err() != nil {
			return connect.AsError(l.ctx, l.ctx.Err())
		}
		info, err := item.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if len(*l.entries) == maxEntries {
			return connect.Errorf(connect.ResourceExhausted, "more than %d entries: list with a smaller depth", maxEntries)
		}
		path := filepath.Join(directory, item.Name())
		*l.entries = append(*l.entries, entryOf(path, info, &l.names))
		if !item.IsDir() || depth <= 1 {
			continue
		}
		// What the user may not look into, or what has just gone, must not hide the rest.
		if err := l.add(path, depth-1); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
