package files

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
)

// walks bounds the threads that packing and unpacking hold: they act as their user all the time.
var walks = make(chan struct{}, 16)

func enterWalk(r *http.Request) error {
	select {
	case walks <- struct{}{}:
		return nil
	case <-r.Context().Done():
		return r.Context().Err()
	}
}

// packTar streams a directory. Pipes, devices and sockets are left out.
func (s *Service) packTar(w http.ResponseWriter, r *http.Request) error {
	user, path, err := s.target(r)
	if err != nil {
		return err
	}
	if err := enterWalk(r); err != nil {
		return err
	}
	defer func() { <-walks }()
	started := false
	err = account.As(user, func() error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return connect.Errorf(connect.InvalidArgument, "path '%s' is not a directory", path)
		}
		if _, err := os.ReadDir(path); err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/x-tar")
		started = true
		if r.Method == http.MethodHead {
			return nil
		}
		archive := tar.NewWriter(w)
		if err := pack(r, archive, path); err != nil {
			return err
		}
		return archive.Close()
	})
	if err != nil && started {
		// Only a broken connection tells the reader that this is not all.
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		return pathError(path, err)
	}
	return nil
}

func pack(r *http.Request, archive *tar.Writer, root string) error {
	var names account.Names
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(path string, item fs.DirEntry, err error) error {
		if err == nil {
			err = r.Context().Err()
		}
		if err != nil || path == root {
			return skipMissing(err)
		}
		if temporary, _ := isTemporary(path); temporary {
			if item.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := item.Info()
		if err != nil {
			return skipMissing(err)
		}
		name, _ := filepath.Rel(root, path)
		switch {
		case info.IsDir():
			return packHeader(archive, name+"/", "", info, &names)
		case info.Mode()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return skipMissing(err)
			}
			return packHeader(archive, name, link, info, &names)
		case info.Mode().IsRegular():
			return packFile(archive, path, name, &names)
		}
		return nil
	})
}

func skipMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func packHeader(archive *tar.Writer, name, link string, info fs.FileInfo, names *account.Names) error {
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name = name
	header.Uname, header.Gname = names.User(uint32(header.Uid)), names.Group(uint32(header.Gid))
	return archive.WriteHeader(header)
}

func packFile(archive *tar.Writer, path, name string, names *account.Names) error {
	file, err := openRegular(path)
	if err != nil {
		return skipMissing(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := packHeader(archive, name, "", info, names); err != nil {
		return err
	}
	// A file that changes meanwhile keeps the size that its header says.
	copied, err := io.Copy(archive, io.LimitReader(file, info.Size()))
	if err == nil && copied < info.Size() {
		_, err = io.CopyN(archive, zeros{}, info.Size()-copied)
	}
	return err
}

type zeros struct{}

func (zeros) Read(buffer []byte) (int, error) {
	clear(buffer)
	return len(buffer), nil
}
