package files

import (
	"compress/gzip"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
)

func (s *Service) download(w http.ResponseWriter, r *http.Request) error {
	user, path, err := s.target(r)
	if err != nil {
		return err
	}
	var file *os.File
	err = account.As(user, func() error {
		var err error
		file, err = openRegular(path)
		return err
	})
	if err != nil {
		return pathError(path, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	encoding, err := chooseEncoding(r)
	if err != nil {
		// 406 has no code in the Connect protocol.
		connect.WriteJSON(w, http.StatusNotAcceptable, map[string]any{"code": http.StatusNotAcceptable, "message": err.Error()})
		return nil
	}
	header := w.Header()
	// Files of a sandbox are data: a browser must not run them in the name of whoever shows them.
	header.Set("Content-Type", "application/octet-stream")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": strings.ToValidUTF8(filepath.Base(path), "\uFFFD")}))
	header.Set("Vary", "Accept-Encoding")
	if encoding != "gzip" {
		http.ServeContent(w, r, "", info.ModTime(), file)
		return nil
	}
	header.Set("Content-Encoding", "gzip")
	if r.Method == http.MethodHead {
		return nil
	}
	packer, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if _, err := io.Copy(packer, file); err != nil {
		// Only a broken connection tells the reader that this is not the whole file.
		panic(http.ErrAbortHandler)
	}
	return packer.Close()
}

// chooseEncoding compresses for callers that ask for gzip and nothing else: others list what they can read by default,
// and between a sandbox and its host compression costs more than it saves. Ranges count bytes of the file itself.
func chooseEncoding(r *http.Request) (string, error) {
	wanted := map[string]bool{}
	for _, item := range strings.Split(r.Header.Get("Accept-Encoding"), ",") {
		name, parameters, _ := strings.Cut(item, ";")
		if name = strings.ToLower(strings.TrimSpace(name)); name != "" {
			wanted[name] = !isZeroQuality(parameters)
		}
	}
	identity, named := wanted["identity"]
	if !named {
		any, starred := wanted["*"]
		identity = !starred || any
	}
	if r.Header.Get("Range") == "" && wanted["gzip"] && (!identity || !named && len(wanted) == 1) {
		return "gzip", nil
	}
	if !identity {
		return "", connect.Errorf(connect.InvalidArgument, "no acceptable encoding found, supported: [identity, gzip]")
	}
	return "identity", nil
}

func isZeroQuality(parameters string) bool {
	value, ok := strings.CutPrefix(strings.ReplaceAll(parameters, " ", ""), "q=")
	quality, err := strconv.ParseFloat(value, 64)
	return ok && err == nil && quality == 0
}

// openRegular opens a file for reading. Pipes, devices and sockets could block for ever, or do things when opened.
func openRegular(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if err := checkRegular(path, info); err != nil {
		return nil, err
	}
	// The file may have been exchanged since: O_NONBLOCK keeps the open itself from waiting.
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), path)
	if info, err = file.Stat(); err == nil {
		err = checkRegular(path, info)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func retry(fn func() (int, error)) (int, error) {
	for {
		n, err := fn()
		if err != unix.EINTR {
			return n, err
		}
	}
}

func checkRegular(path string, info os.FileInfo) error {
	switch mode := info.Mode(); {
	case mode.IsDir():
		return connect.Errorf(connect.InvalidArgument, "path '%s' is a directory", path)
	case !mode.IsRegular():
		return connect.Errorf(connect.InvalidArgument, "path '%s' is not a regular file (%s)", path, kindOf(mode))
	}
	return nil
}

func kindOf(mode os.FileMode) string {
	switch {
	case mode&os.ModeNamedPipe != 0:
		return "named pipe"
	case mode&os.ModeSocket != 0:
		return "socket"
	case mode&os.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// removeExisting is RemoveAll that minds what is not there.
func removeExisting(path string) error {
	if path == "/" {
		return connect.Errorf(connect.InvalidArgument, "the root directory cannot be removed")
	}
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}
