package files

import (
	"errors"
	"net/http"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
)

func (s *Service) registerHTTP(mux *http.ServeMux) {
	mux.HandleFunc("GET /files", s.handle(s.download))
	mux.HandleFunc("POST /files", s.handle(s.upload))
	mux.HandleFunc("PUT /files", s.handle(s.uploadRaw))
	mux.HandleFunc("DELETE /files", s.handle(s.delete))
	mux.HandleFunc("POST /files/compose", s.handle(s.compose))
	mux.HandleFunc("GET /files/tar", s.handle(s.packTar))
	mux.HandleFunc("PUT /files/tar", s.handle(s.unpackTar))
	mux.HandleFunc("POST /files/tar", s.handle(s.unpackTar))
}

// handle answers with the error of fn in the form of envd's REST API.
func (s *Service) handle(fn func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := fn(w, r); err != nil {
			WriteError(w, connect.AsError(r.Context(), err))
		}
	}
}

// WriteError answers with {"code", "message"}, where the code is the HTTP status, and the details that the error has.
func WriteError(w http.ResponseWriter, err *connect.Error) {
	status := err.HTTPStatus()
	if err.Code == connect.ResourceExhausted {
		status = http.StatusInsufficientStorage
	}
	answer := map[string]any{"code": status, "message": err.Message}
	if len(err.Details) > 0 {
		answer["details"] = err.Details
	}
	connect.WriteJSON(w, status, answer)
}

// target is the user and the absolute path of a call. The user comes from the query, or else from HTTP Basic.
func (s *Service) target(r *http.Request) (*account.User, string, error) {
	user, err := s.userOf(r, r.URL.Query().Get("username"))
	if err != nil {
		return nil, "", err
	}
	path := r.URL.Query().Get("path")
	if path == "" {
		return nil, "", connect.Errorf(connect.InvalidArgument, "the query must name a path")
	}
	path, err = absolute(user, path)
	return user, path, err
}

func (s *Service) userOf(r *http.Request, name string) (*account.User, error) {
	if name == "" {
		name, _, _ = r.BasicAuth()
	}
	user, err := s.Settings.User(name)
	var foreign *account.ForeignUserError
	if errors.As(err, &foreign) {
		return nil, connect.Errorf(connect.PermissionDenied, "%v", err)
	}
	if err != nil {
		return nil, connect.Errorf(connect.Unauthenticated, "%v", err)
	}
	return user, nil
}

func (s *Service) delete(w http.ResponseWriter, r *http.Request) error {
	user, path, err := s.target(r)
	if err != nil {
		return err
	}
	err = account.As(user, func() error { return removeExisting(path) })
	if err != nil {
		return pathError(path, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
