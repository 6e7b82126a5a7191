package protocol

import (
	"fmt"
	"os"
	"path/filepath"
)

// writeSecrets puts the secrets that the function asked for as files where only its own user reads them.
func writeSecrets(files map[string]string) error {
	if len(files) == 0 {
		return nil
	}
	dir := os.Getenv("THAW_SECRETS_DIR")
	if dir == "" {
		return fmt.Errorf("this instance has no place for secrets as files")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, value := range files {
		file, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
		if err != nil {
			return err
		}
		_, err = file.WriteString(value)
		if closed := file.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return err
		}
	}
	return nil
}
