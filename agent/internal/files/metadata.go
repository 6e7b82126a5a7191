package files

import (
	"net/http"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"thaw/agent/internal/connect"
)

// Metadata of an upload lives in extended attributes, so that it moves and is copied with the file.
const (
	metadataHeader    = "X-Metadata-"
	metadataAttribute = "user.e2b."
	maxMetadataKey    = 255 - len(metadataAttribute)
	maxMetadataBytes  = 4096
)

func readMetadata(path string) map[string]string {
	size, err := unix.Llistxattr(path, nil)
	if err != nil || size == 0 {
		return nil
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(path, list); err != nil {
		return nil
	}
	var metadata map[string]string
	for _, name := range strings.Split(string(list[:size]), "\x00") {
		key, ok := strings.CutPrefix(name, metadataAttribute)
		if !ok || key == "" {
			continue
		}
		value := make([]byte, maxMetadataBytes)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			continue
		}
		if metadata == nil {
			metadata = map[string]string{}
		}
		metadata[key] = string(value[:n])
	}
	return metadata
}

func writeMetadata(file *os.File, metadata map[string]string) error {
	for key, value := range metadata {
		if err := unix.Fsetxattr(int(file.Fd()), metadataAttribute+key, []byte(value), 0); err != nil {
			return connect.Errorf(connect.FailedPrecondition, "the file system takes no metadata (%s%s): %v", metadataAttribute, key, err)
		}
	}
	return nil
}

func metadataOf(header http.Header) (map[string]string, error) {
	metadata := map[string]string{}
	total := 0
	for name, values := range header {
		if len(name) < len(metadataHeader) || !strings.EqualFold(name[:len(metadataHeader)], metadataHeader) {
			continue
		}
		key, value := strings.ToLower(name[len(metadataHeader):]), values[0]
		total += len(metadataAttribute) + len(key) + len(value)
		if key == "" || len(key) > maxMetadataKey || !isPrintable(key) || !isPrintable(value) || total > maxMetadataBytes {
			return nil, connect.Errorf(connect.InvalidArgument,
				"metadata '%s' is refused: keys have 1 to %d and all metadata at most %d bytes, in printable ASCII", key, maxMetadataKey, maxMetadataBytes)
		}
		metadata[key] = value
	}
	return metadata, nil
}

func isPrintable(text string) bool {
	for i := range len(text) {
		if text[i] < 0x20 || text[i] > 0x7e {
			return false
		}
	}
	return true
}
