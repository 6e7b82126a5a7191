package files

import (
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
)

// Write replaces the file at path with what source holds: readers see the old content or the new, never a part.
// Parents are made; an existing file keeps its mode (and, for root, its owner); new files get mode, or 0644 if it is 0.
func Write(user *account.User, path string, source io.Reader, mode fs.FileMode, metadata map[string]string) (*Entry, error) {
	var target *target
	err := account.As(user, func() (err error) {
		target, err = openTarget(path, mode)
		return err
	})
	if err != nil {
		return nil, pathError(path, err)
	}
	defer target.file.Close()
	// The bytes are copied outside As: a slow sender must not hold a thread.
	_, err = io.Copy(target.file, source)
	if err == nil {
		// Attributes are set through the open file, which needs no permission of its path.
		err = writeMetadata(target.file, metadata)
	}
	var entry *Entry
	failure := account.As(user, func() error {
		if err == nil {
			err = target.commit()
		}
		if err != nil {
			target.discard()
			return err
		}
		entry, err = entryAt(path, &account.Names{})
		return err
	})
	if failure != nil {
		return nil, pathError(path, failure)
	}
	return entry, nil
}

// target is a file that is being written: a temporary one beside its place, or the place itself where it has to be.
type target struct {
	path, temporary string
	file            *os.File
	mode            fs.FileMode
	owner           *syscall.Stat_t
}

func openTarget(path string, mode fs.FileMode) (*target, error) {
	path, err := followLinks(path)
	if err != nil {
		return nil, err
	}
	t := &target{path: path, mode: mode}
	if t.mode == 0 {
		t.mode = 0o644
	}
	info, err := os.Lstat(path)
	switch {
	case err == nil:
		if err := checkRegular(path, info); err != nil {
			return nil, err
		}
		if err := checkWritable(path); err != nil {
			return nil, err
		}
		if mode == 0 {
			t.mode = info.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
		}
		t.owner, _ = info.Sys().(*syscall.Stat_t)
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, pathError(filepath.Dir(path), err)
		}
	default:
		return nil, err
	}
	t.temporary = temporaryName(filepath.Dir(path), t.owner != nil)
	t.file, err = os.OpenFile(t.temporary, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil && t.owner != nil && (errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS)) {
		// The user may write the file, but not its directory.
		t.temporary = ""
		t.file, err = os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|unix.O_NONBLOCK, 0)
	}
	return t, err
}

func (t *target) commit() error {
	if t.temporary == "" {
		return nil
	}
	if t.owner != nil && (int(t.owner.Uid) != ownerOf(t.file) || int(t.owner.Gid) != groupOf(t.file)) {
		// Only root may give files away; for others the file becomes theirs, as with any editor that renames.
		_ = t.file.Chown(int(t.owner.Uid), int(t.owner.Gid))
	}
	if err := t.file.Chmod(t.mode); err != nil {
		return err
	}
	err := os.Rename(t.temporary, t.path)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EXDEV) {
		// A mount point, such as /etc/hosts in containers, cannot be replaced.
		err = t.overwrite()
	}
	return err
}

func (t *target) overwrite() error {
	source, err := os.Open(t.temporary)
	if err != nil {
		return err
	}
	defer source.Close()
	place, err := os.OpenFile(t.path, os.O_WRONLY|os.O_TRUNC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(place, source)
	if closing := place.Close(); err == nil {
		err = closing
	}
	t.discard()
	return err
}

func (t *target) discard() {
	if t.temporary != "" {
		_ = os.Remove(t.temporary)
	}
}

// followLinks finds the file that a write through a link at the end of path would create or change.
func followLinks(path string) (string, error) {
	const maxLinks = 40
	for range maxLinks {
		info, err := os.Lstat(path)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			return path, nil
		}
		link, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(link) {
			// Not Clean: ".." means the parent of where a link leads.
			link = filepath.Dir(path) + "/" + link
		}
		path = link
	}
	return "", connect.Errorf(connect.InvalidArgument, "path '%s': %v", path, unix.ELOOP)
}

// checkWritable is there because a rename over a file asks only for permission to its directory.
func checkWritable(path string) error {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	if errors.Is(err, unix.ETXTBSY) {
		// A program that runs can be replaced.
		return nil
	}
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

// Temporary names tell watches, which hide them, whether the rename that follows replaces a file.
const (
	temporaryPrefix = ".thaw-"
	suffixNew       = ".new"
	suffixReplace   = ".replace"
)

func temporaryName(directory string, replaces bool) string {
	suffix := suffixNew
	if replaces {
		suffix = suffixReplace
	}
	return filepath.Join(directory, temporaryPrefix+rand.Text()+suffix)
}

// isTemporary looks at the last part of a path.
func isTemporary(path string) (temporary, replaces bool) {
	name := filepath.Base(path)
	if !strings.HasPrefix(name, temporaryPrefix) || len(name) < len(temporaryPrefix)+len(rand.Text()) {
		return false, false
	}
	replaces = strings.HasSuffix(name, suffixReplace)
	return replaces || strings.HasSuffix(name, suffixNew), replaces
}

func ownerOf(file *os.File) int {
	return statOf(file, func(s *syscall.Stat_t) int { return int(s.Uid) })
}
func groupOf(file *os.File) int {
	return statOf(file, func(s *syscall.Stat_t) int { return int(s.Gid) })
}

func statOf(file *os.File, field func(*syscall.Stat_t) int) int {
	info, err := file.Stat()
	if err != nil {
		return -1
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return field(stat)
}
