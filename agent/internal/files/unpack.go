package files

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
)

const maxArchiveEntries = 1_000_000

// unpackTar unpacks a tar, plain or gzip, into a directory. All of it is unpacked and checked beside its place first,
// so that an archive that is refused changes nothing; then existing directories are merged, existing files replaced.
func (s *Service) unpackTar(w http.ResponseWriter, r *http.Request) error {
	user, target, err := s.target(r)
	if err != nil {
		return err
	}
	if err := enterWalk(r); err != nil {
		return err
	}
	defer func() { <-walks }()
	body, err := plainBody(r)
	if err != nil {
		return err
	}
	source, err := gunzip(uploadReader{body})
	if err != nil {
		return err
	}
	err = account.As(user, func() error { return unpackTo(source, target) })
	if err != nil {
		return pathError(target, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func gunzip(source io.Reader) (io.Reader, error) {
	buffered := bufio.NewReaderSize(source, 64<<10)
	if magic, err := buffered.Peek(2); err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return buffered, nil
	}
	unpacked, err := gzip.NewReader(buffered)
	if err != nil {
		return nil, connect.Errorf(connect.InvalidArgument, "the archive is not gzip: %v", err)
	}
	return unpacked, nil
}

func unpackTo(source io.Reader, target string) error {
	place := filepath.Dir(target)
	info, err := os.Stat(target)
	switch {
	case err == nil && !info.IsDir():
		return connect.Errorf(connect.InvalidArgument, "path '%s' is not a directory", target)
	case err == nil:
		// Its parent may belong to somebody else, or to another file system.
		place = target
	case !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		if err := os.MkdirAll(place, 0o755); err != nil {
			return err
		}
	}
	temporary := temporaryName(place, false)
	if err := os.Mkdir(temporary, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	root, err := os.OpenRoot(temporary)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unpackInto(root, source, target); err != nil {
		return err
	}
	if place == target {
		return merge(temporary, target)
	}
	return os.Rename(temporary, target)
}

// unpackInto relies on os.Root to stay inside, whatever names and links the archive holds; the checks before give
// clear answers. target is where the files will lie in the end.
func unpackInto(root *os.Root, source io.Reader, target string) error {
	tail := &tailReader{Reader: source}
	archive := tar.NewReader(tail)
	type directory struct {
		name   string
		header *tar.Header
	}
	var directories []directory
	links := map[string]bool{}
	for count := 1; ; count++ {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) && tail.zeros < endOfArchive {
			err = io.ErrUnexpectedEOF
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return archiveError(err)
		}
		if count > maxArchiveEntries {
			return connect.Errorf(connect.InvalidArgument, "the archive has more than %d entries", maxArchiveEntries)
		}
		name, err := entryName(header)
		if err != nil || name == "." {
			if err != nil {
				return err
			}
			continue
		}
		// Where every entry lies at its own name and not behind a link, the check of links below holds.
		if passesLink(links, name, header.Typeflag == tar.TypeDir) {
			return connect.Errorf(connect.InvalidArgument, "the archive's entry '%s' lies behind a link of the archive", header.Name)
		}
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return entryError(header, err)
		}
		if err := unpackEntry(root, archive, header, name, target); err != nil {
			return entryError(header, err)
		}
		if header.Typeflag == tar.TypeSymlink {
			links[name] = true
		} else {
			delete(links, name)
		}
		if header.Typeflag == tar.TypeDir {
			directories = append(directories, directory{name, header})
		}
	}
	// Last and deepest first: modes may forbid writing, and writing changes times.
	for i := len(directories) - 1; i >= 0; i-- {
		_ = root.Chtimes(directories[i].name, time.Time{}, directories[i].header.ModTime)
		if err := root.Chmod(directories[i].name, fs.FileMode(directories[i].header.Mode)&fs.ModePerm); err != nil {
			return entryError(directories[i].header, err)
		}
	}
	return nil
}

func entryName(header *tar.Header) (string, error) {
	name := header.Name
	if name == "" || strings.ContainsRune(name, 0) || path.IsAbs(name) || !isInside(path.Clean(name)) {
		return "", connect.Errorf(connect.InvalidArgument, "the archive's entry '%s' leads out of its directory", name)
	}
	return path.Clean(name), nil
}

func passesLink(links map[string]bool, name string, isDirectory bool) bool {
	if isDirectory && links[name] {
		return true
	}
	for parent := path.Dir(name); parent != "."; parent = path.Dir(parent) {
		if links[parent] {
			return true
		}
	}
	return false
}

// linkStaysInside looks at the text of a link alone: ".." may only come first, because after the name of another link
// it would mean something else.
func linkStaysInside(name, link, target string) bool {
	if link == "" || strings.ContainsRune(link, 0) {
		return false
	}
	if path.IsAbs(link) {
		relative, err := filepath.Rel(target, link)
		return err == nil && path.Clean(link) == strings.TrimSuffix(link, "/") && isInside(relative)
	}
	down := false
	for _, part := range strings.Split(link, "/") {
		if part == ".." && down {
			return false
		}
		down = down || part != ".." && part != "." && part != ""
	}
	return isInside(path.Join(path.Dir(name), link))
}

func isInside(clean string) bool { return clean != ".." && !strings.HasPrefix(clean, "../") }

func unpackEntry(root *os.Root, archive *tar.Reader, header *tar.Header, name, target string) error {
	switch header.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeReg:
		_ = root.Remove(name)
		file, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, archive)
		if err == nil {
			// Without the bits that would give away the rights of the user.
			err = file.Chmod(fs.FileMode(header.Mode) & fs.ModePerm)
		}
		if closing := file.Close(); err == nil {
			err = closing
		}
		if err == nil {
			err = root.Chtimes(name, time.Time{}, header.ModTime)
		}
		return archiveError(err)
	case tar.TypeSymlink:
		link := header.Linkname
		if !linkStaysInside(name, link, target) {
			return connect.Errorf(connect.InvalidArgument, "the archive's link '%s' leads out of its directory, to '%s'", header.Name, link)
		}
		_ = root.Remove(name)
		return root.Symlink(link, name)
	case tar.TypeLink:
		old := path.Clean(header.Linkname)
		if path.IsAbs(old) || !isInside(old) || isLink(root, old) {
			return connect.Errorf(connect.InvalidArgument, "the archive's link '%s' leads out of its directory, to '%s'", header.Name, header.Linkname)
		}
		_ = root.Remove(name)
		return root.Link(old, name)
	}
	return connect.Errorf(connect.InvalidArgument, "the archive's entry '%s' is neither a file, a directory nor a link", header.Name)
}

// isLink: a hard link to a symbolic one would move it to another depth.
func isLink(root *os.Root, name string) bool {
	info, err := root.Lstat(name)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

func entryError(header *tar.Header, err error) error {
	var coded *connect.Error
	if errors.As(err, &coded) {
		return err
	}
	failure := pathError(header.Name, err)
	if failure.Code == connect.Internal || failure.Code == connect.NotFound {
		// os.Root says "path escapes from parent" without a number of the system.
		return connect.Errorf(connect.InvalidArgument, "the archive's entry '%s' cannot be unpacked: %v", header.Name, err)
	}
	return failure
}

func archiveError(err error) error {
	var coded *connect.Error
	if errors.As(err, &coded) {
		return err
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, gzip.ErrHeader) {
		return connect.Errorf(connect.InvalidArgument, "the archive is damaged or cut off: %v", err)
	}
	return err
}

// endOfArchive is a block of zeros. Package tar takes any end for the end, so that it would not notice a lost half.
const endOfArchive = 512

// tailReader counts the zeros at the end of what was read.
type tailReader struct {
	io.Reader
	zeros int
}

func (t *tailReader) Read(buffer []byte) (int, error) {
	n, err := t.Reader.Read(buffer)
	rest := bytes.TrimRight(buffer[:n], "\x00")
	if len(rest) > 0 {
		t.zeros = 0
	}
	t.zeros += n - len(rest)
	return n, err
}

// merge moves what lies in source into target.
func merge(source, target string) error {
	items, err := os.ReadDir(source)
	if err != nil {
		return err
	}
	for _, item := range items {
		from, to := filepath.Join(source, item.Name()), filepath.Join(target, item.Name())
		existing, err := os.Lstat(to)
		if err == nil && item.IsDir() && existing.IsDir() {
			if err := merge(from, to); err != nil {
				return err
			}
			continue
		}
		if err == nil && (item.IsDir() || existing.IsDir()) {
			return connect.Errorf(connect.InvalidArgument, "path '%s' is a directory on one side and a file on the other", to)
		}
		if err := os.Rename(from, to); err != nil {
			return err
		}
	}
	return nil
}
