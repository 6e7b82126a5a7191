package files

import (
	"encoding/json"
	"io"
	"net/http"
	"os"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
)

type composeRequest struct {
	SourcePaths []string `json:"source_paths"`
	Destination string   `json:"destination"`
	Username    string   `json:"username"`
}

// compose joins files into one and deletes them; the kernel copies.
func (s *Service) compose(w http.ResponseWriter, r *http.Request) error {
	var req composeRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, connect.MaxMessageBytes)).Decode(&req); err != nil {
		return connect.Errorf(connect.InvalidArgument, "the request is no valid JSON: %v", err)
	}
	if len(req.SourcePaths) == 0 || req.Destination == "" {
		return connect.Errorf(connect.InvalidArgument, "source_paths and destination are needed")
	}
	user, err := s.userOf(r, req.Username)
	if err != nil {
		return err
	}
	destination, err := absolute(user, req.Destination)
	if err != nil {
		return err
	}
	var entry *Entry
	err = account.As(user, func() (err error) {
		entry, err = join(user, req.SourcePaths, destination)
		return err
	})
	if err != nil {
		return pathError(destination, err)
	}
	connect.WriteJSON(w, http.StatusOK, writtenOf(entry))
	return nil
}

func join(user *account.User, sources []string, destination string) (*Entry, error) {
	target, err := openTarget(destination, 0)
	if err != nil {
		return nil, err
	}
	defer target.file.Close()
	if target.temporary == "" {
		return nil, connect.Errorf(connect.PermissionDenied, "path '%s': the directory is not writable", destination)
	}
	paths := make([]string, 0, len(sources))
	for _, source := range sources {
		path, err := absolute(user, source)
		if err == nil {
			err = appendFile(target.file, path)
		}
		if err != nil {
			target.discard()
			return nil, pathError(path, err)
		}
		paths = append(paths, path)
	}
	if err := target.commit(); err != nil {
		target.discard()
		return nil, err
	}
	for _, path := range paths {
		if path != destination {
			_ = os.Remove(path)
		}
	}
	return entryAt(destination, &account.Names{})
}

func appendFile(target *os.File, path string) error {
	source, err := openRegular(path)
	if err != nil {
		return err
	}
	defer source.Close()
	_, err = io.Copy(target, source)
	return err
}
