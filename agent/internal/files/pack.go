package files

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

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

func pack(r *http.Request, archive *tar.Writer, path string) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	return (&packer{r.Context(), archive, account.Names{}}).directory(root, "")
}

type packer struct {
	context context.Context
	archive *tar.Writer
	names   account.Names
}

// directory packs what is in folder, whose own name ends with a slash, or is empty for the one that was asked for.
//
// The sandbox goes on meanwhile, and may put a link where a folder or a file was a moment ago. So each folder is held
// open and its entries are opened from there, never by a whole path: nothing from elsewhere comes in.
func (p *packer) directory(folder *os.Root, prefix string) error {
	if len(prefix) > unix.PathMax {
		return unix.ENAMETOOLONG
	}
	items, err := namesIn(folder)
	if err != nil {
		return err
	}
	for _, item := range items {
		if err := p.context.Err(); err != nil {
			return err
		}
		if temporary, _ := isTemporary(item); temporary {
			continue
		}
		if err := p.entry(folder, prefix, item); err != nil {
			return err
		}
	}
	return nil
}

func namesIn(folder *os.Root) ([]string, error) {
	directory, err := folder.Open(".")
	if err != nil {
		return nil, err
	}
	defer directory.Close()
	items, err := directory.Readdirnames(-1)
	slices.Sort(items)
	return items, err
}

func (p *packer) entry(folder *os.Root, prefix, item string) error {
	info, err := folder.Lstat(item)
	if err != nil {
		return unlessGone(err)
	}
	switch {
	case info.IsDir():
		below, err := folder.OpenRoot(item)
		if err != nil {
			return unlessGone(err)
		}
		defer below.Close()
		if opened, err := below.Stat("."); err != nil || !os.SameFile(info, opened) {
			return err
		}
		if err := p.header(prefix+item+"/", "", info); err != nil {
			return err
		}
		return p.directory(below, prefix+item+"/")
	case info.Mode()&fs.ModeSymlink != 0:
		link, err := folder.Readlink(item)
		if err != nil {
			return unlessGone(err)
		}
		return p.header(prefix+item, link, info)
	case info.Mode().IsRegular():
		// Something else may be there by now: O_NONBLOCK keeps the open itself from waiting.
		file, err := folder.OpenFile(item, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err != nil {
			return unlessGone(err)
		}
		defer file.Close()
		opened, err := file.Stat()
		if err != nil || !os.SameFile(info, opened) {
			return err
		}
		return p.file(prefix+item, file, opened)
	}
	return nil
}

// unlessGone is no error where an entry is no longer there, or is no longer what it was.
func unlessGone(err error) error {
	var number syscall.Errno
	// What os.Root itself refuses, such as a link that leads out, has no number of the system.
	if !errors.As(err, &number) || number == unix.ENOENT || number == unix.ENOTDIR || number == unix.ELOOP || number == unix.EINVAL {
		return nil
	}
	return err
}

func (p *packer) header(name, link string, info fs.FileInfo) error {
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name = name
	header.Uname, header.Gname = p.names.User(uint32(header.Uid)), p.names.Group(uint32(header.Gid))
	return p.archive.WriteHeader(header)
}

func (p *packer) file(name string, file *os.File, info fs.FileInfo) error {
	if err := p.header(name, "", info); err != nil {
		return err
	}
	// A file that changes meanwhile keeps the size that its header says.
	copied, err := io.Copy(p.archive, io.LimitReader(file, info.Size()))
	if err == nil && copied < info.Size() {
		_, err = io.CopyN(p.archive, zeros{}, info.Size()-copied)
	}
	return err
}

type zeros struct{}

func (zeros) Read(buffer []byte) (int, error) {
	clear(buffer)
	return len(buffer), nil
}
