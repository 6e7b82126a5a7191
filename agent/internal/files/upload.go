package files

import (
	"compress/gzip"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
)

// written is envd's short form of an entry.
type written struct {
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

func writtenOf(entry *Entry) written {
	return written{Path: entry.Path, Name: entry.Name, Type: "file", Metadata: entry.Metadata}
}

// upload takes a raw body, or a form with one or more parts named file.
func (s *Service) upload(w http.ResponseWriter, r *http.Request) error {
	kind, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" {
		return s.uploadRaw(w, r)
	}
	if parameters["boundary"] == "" {
		return connect.Errorf(connect.InvalidArgument, "multipart/form-data needs a boundary")
	}
	metadata, err := metadataOf(r.Header)
	if err != nil {
		return err
	}
	user, err := s.userOf(r, r.URL.Query().Get("username"))
	if err != nil {
		return err
	}
	body, err := plainBody(r)
	if err != nil {
		return err
	}
	form := multipart.NewReader(body, parameters["boundary"])
	results := []written{}
	paths := map[string]bool{}
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return connect.Errorf(connect.InvalidArgument, "the form cannot be read: %v", err)
		}
		if part.FormName() != "file" {
			continue
		}
		path, err := partPath(user, part, r.URL.Query().Get("path"))
		if err != nil {
			return err
		}
		if paths[path] {
			return connect.Errorf(connect.InvalidArgument, "the form holds two files for path '%s'", path)
		}
		paths[path] = true
		entry, err := Write(user, path, uploadReader{part}, 0, metadata)
		if err != nil {
			return err
		}
		results = append(results, writtenOf(entry))
	}
	if len(results) == 0 {
		return connect.Errorf(connect.InvalidArgument, "the form holds no part with the name 'file'")
	}
	connect.WriteJSON(w, http.StatusOK, results)
	return nil
}

// partPath is the path of the query, or the file name of the part with its folders, which Part.FileName leaves out.
func partPath(user *account.User, part *multipart.Part, query string) (string, error) {
	path := query
	if path == "" {
		_, parameters, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
		if err != nil || parameters["filename"] == "" {
			return "", connect.Errorf(connect.InvalidArgument, "a part of the form has no file name, and the query names no path")
		}
		path = parameters["filename"]
	}
	return absolute(user, path)
}

func (s *Service) uploadRaw(w http.ResponseWriter, r *http.Request) error {
	metadata, err := metadataOf(r.Header)
	if err != nil {
		return err
	}
	user, path, err := s.target(r)
	if err != nil {
		return err
	}
	body, err := plainBody(r)
	if err != nil {
		return err
	}
	entry, err := Write(user, path, uploadReader{body}, 0, metadata)
	if err != nil {
		return err
	}
	connect.WriteJSON(w, http.StatusOK, []written{writtenOf(entry)})
	return nil
}

// plainBody undoes Content-Encoding. The disk of the sandbox bounds what comes out.
func plainBody(r *http.Request) (io.Reader, error) {
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
		return r.Body, nil
	case "gzip":
		body, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, connect.Errorf(connect.InvalidArgument, "the body is not gzip: %v", err)
		}
		return body, nil
	default:
		return nil, connect.Errorf(connect.InvalidArgument, "Content-Encoding '%s' is not supported: use gzip or none", encoding)
	}
}

// uploadReader marks errors of the sender, which are not the file system's.
type uploadReader struct{ io.Reader }

func (u uploadReader) Read(buffer []byte) (int, error) {
	n, err := u.Reader.Read(buffer)
	if err != nil && !errors.Is(err, io.EOF) {
		err = connect.Errorf(connect.InvalidArgument, "the upload ended early: %v", err)
	}
	return n, err
}
