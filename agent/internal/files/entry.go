// Package files serves the files of a sandbox, each call with the permissions of its user.
package files

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
)

// Entry describes a file as envd's filesystem.EntryInfo. Links carry the type and mode of what they point at.
type Entry struct {
	Name          string            `json:"name"`
	Type          string            `json:"type"`
	Path          string            `json:"path"`
	Size          string            `json:"size"` // JSON numbers cannot hold 64 bits.
	Mode          uint32            `json:"mode"`
	Permissions   string            `json:"permissions"`
	Owner         string            `json:"owner"`
	Group         string            `json:"group"`
	ModifiedTime  string            `json:"modifiedTime"`
	SymlinkTarget *string           `json:"symlinkTarget,omitempty"`
	Metadata      map[string]string `json:"metadata,omitempty"`
}

const (
	typeUnspecified = "FILE_TYPE_UNSPECIFIED"
	typeFile        = "FILE_TYPE_FILE"
	typeDirectory   = "FILE_TYPE_DIRECTORY"
	typeSymlink     = "FILE_TYPE_SYMLINK"
)

func typeOf(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return typeFile
	case mode.IsDir():
		return typeDirectory
	case mode&fs.ModeSymlink != 0:
		return typeSymlink
	}
	return typeUnspecified
}

// entryAt looks at a path without following a link at its end.
func entryAt(path string, names *account.Names) (*Entry, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	return entryOf(path, info, names), nil
}

func entryOf(path string, info fs.FileInfo, names *account.Names) *Entry {
	mode := info.Mode()
	entry := &Entry{
		Name:         filepath.Base(path),
		Path:         path,
		Type:         typeOf(mode),
		Size:         strconv.FormatInt(info.Size(), 10),
		Mode:         uint32(mode.Perm()),
		Permissions:  mode.String(),
		ModifiedTime: info.ModTime().UTC().Format(time.RFC3339Nano),
		Metadata:     readMetadata(path),
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		entry.Owner, entry.Group = names.User(stat.Uid), names.Group(stat.Gid)
	}
	if mode&fs.ModeSymlink != 0 {
		target, err := filepath.EvalSymlinks(path)
		if err != nil {
			target, _ = os.Readlink(path)
		} else if info, err := os.Stat(target); err == nil {
			entry.Type, entry.Mode = typeOf(info.Mode()), uint32(info.Mode().Perm())
		}
		entry.SymlinkTarget = &target
	}
	return entry
}

// pathError gives an error of the system the code and the words that clients expect.
func pathError(path string, err error) *connect.Error {
	var coded *connect.Error
	switch {
	case errors.As(err, &coded):
		return coded
	case errors.Is(err, fs.ErrNotExist):
		return connect.Errorf(connect.NotFound, "path '%s' does not exist", path)
	case errors.Is(err, fs.ErrPermission):
		return connect.Errorf(connect.PermissionDenied, "path '%s': permission denied", path)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return connect.Errorf(connect.ResourceExhausted, "not enough disk space available")
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP),
		errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, fs.ErrExist):
		return connect.Errorf(connect.InvalidArgument, "path '%s': %v", path, errno(err))
	case errors.Is(err, unix.EROFS):
		return connect.Errorf(connect.PermissionDenied, "path '%s' is on a read-only file system", path)
	}
	return connect.Errorf(connect.Internal, "path '%s': %v", path, errno(err))
}

func errno(err error) error {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number
	}
	return err
}
