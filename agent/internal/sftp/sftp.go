// Package sftp serves the files of the sandbox over SFTP (version 3), to whoever holds the other end of its streams.
package sftp

import (
	"errors"
	"io"
	"os"

	"github.com/pkg/sftp"
)

// Serve speaks SFTP on stdin and stdout until stdin ends. It may do what the user may whose process it is; relative paths
// start in its working directory.
func Serve() error {
	streams := struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout}
	// Without its own working directory: it would make the targets of symbolic links absolute.
	server, err := sftp.NewServer(streams, sftp.WithAllocator())
	if err != nil {
		return err
	}
	if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
