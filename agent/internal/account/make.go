package account

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

const (
	firstOwnID = 1000
	lastOwnID  = 60000
	skeleton   = "/etc/skel"
)

var usualName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// Make adds an account with a home folder, as useradd would, to images that have no such program. An account of this
// name that is there already stays as it is. Only the first process of a sandbox may do this: elsewhere the files are the host's.
func Make(name string) error {
	if !usualName.MatchString(name) {
		return fmt.Errorf("'%s' is no usual name for an account", name)
	}
	if find(func(u *User) bool { return u.Name == name }) != nil {
		return nil
	}
	id, err := freeID()
	if err != nil {
		return err
	}
	shell := "/bin/sh"
	if info, err := os.Stat("/bin/bash"); err == nil && info.Mode().IsRegular() {
		shell = "/bin/bash"
	}
	home := filepath.Join("/home", name)
	if err := os.MkdirAll("/home", 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(home, 0o755); err == nil {
		if err := furnish(home, id); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := appendLine(groupFile, fmt.Sprintf("%s:x:%d:", name, id)); err != nil {
		return err
	}
	// "*" is no password, and needs no entry in /etc/shadow.
	return appendLine(passwdFile, fmt.Sprintf("%s:*:%d:%d::%s:%s", name, id, id, home, shell))
}

func freeID() (int, error) {
	taken := map[string]bool{}
	for _, path := range []string{passwdFile, groupFile} {
		eachLine(path, 3, func(fields []string) bool {
			taken[fields[2]] = true
			return true
		})
	}
	for id := firstOwnID; id < lastOwnID; id++ {
		if !taken[fmt.Sprint(id)] {
			return id, nil
		}
	}
	return 0, errors.New("no number is left for another account")
}

// furnish gives a new home to its owner, with the plain files that new homes of this image begin with.
func furnish(home string, id int) error {
	entries, _ := os.ReadDir(skeleton)
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(skeleton, entry.Name()))
		if err != nil {
			continue
		}
		target := filepath.Join(home, entry.Name())
		if err := os.WriteFile(target, content, 0o644); err != nil {
			return err
		}
		if err := os.Chown(target, id, id); err != nil {
			return err
		}
	}
	return os.Chown(home, id, id)
}

// appendLine also ends a last line that has no end.
func appendLine(path, line string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	if size, err := file.Seek(0, io.SeekEnd); err == nil && size > 0 {
		last := make([]byte, 1)
		if _, err := file.ReadAt(last, size-1); err == nil && last[0] != '\n' {
			line = "\n" + line
		}
	}
	_, err = file.WriteString(line + "\n")
	return err
}
