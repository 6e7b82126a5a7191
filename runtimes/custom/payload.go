//go:build linux

package main

import (
	"os"
	"sync"
)

// payloadFiles are the files of the invocations that run now.
type payloadFiles struct {
	mutex sync.Mutex
	paths map[string]struct{}
}

func newPayloadFiles() *payloadFiles { return &payloadFiles{paths: map[string]struct{}{}} }

// create writes a payload to a file of mode 0600. Empty when there is no room for it: then stdin has to do.
func (files *payloadFiles) create(dir string, payload []byte) string {
	if dir == "" {
		dir = "/tmp"
	}
	file, err := os.CreateTemp(dir, "payload-*")
	if err != nil {
		return ""
	}
	files.mutex.Lock()
	files.paths[file.Name()] = struct{}{}
	files.mutex.Unlock()
	_, err = file.Write(payload)
	if closeErr := file.Close(); err != nil || closeErr != nil {
		files.remove(file.Name())
		return ""
	}
	return file.Name()
}

func (files *payloadFiles) remove(path string) {
	if path == "" {
		return
	}
	_ = os.Remove(path)
	files.mutex.Lock()
	defer files.mutex.Unlock()
	delete(files.paths, path)
}

func (files *payloadFiles) removeAll() {
	files.mutex.Lock()
	defer files.mutex.Unlock()
	for path := range files.paths {
		_ = os.Remove(path)
	}
}
