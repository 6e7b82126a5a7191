package files

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
)

// Event is envd's filesystem.FilesystemEvent; Name is relative to the watched directory.
type Event struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Entry *Entry `json:"entry,omitempty"`
}

var eventTypes = []struct {
	operation fsnotify.Op
	name      string
}{
	{fsnotify.Create, "EVENT_TYPE_CREATE"},
	{fsnotify.Write, "EVENT_TYPE_WRITE"},
	{fsnotify.Remove, "EVENT_TYPE_REMOVE"},
	{fsnotify.Rename, "EVENT_TYPE_RENAME"},
	{fsnotify.Chmod, "EVENT_TYPE_CHMOD"},
}

type watchRequest struct {
	Path               string `json:"path"`
	Recursive          bool   `json:"recursive"`
	IncludeEntry       bool   `json:"includeEntry"`
	AllowNetworkMounts bool   `json:"allowNetworkMounts"`
}

// watch follows one directory, and with Recursive all below it.
type watch struct {
	watchRequest
	user    *account.User
	root    string
	watcher *fsnotify.Watcher
	// moving is the last temporary file that was renamed; the event after it tells what it became.
	moving string
}

func openWatch(user *account.User, req watchRequest) (*watch, error) {
	root, err := absolute(user, req.Path)
	if err != nil {
		return nil, err
	}
	w := &watch{watchRequest: req, user: user, root: root}
	err = account.As(user, w.open)
	if err != nil {
		return nil, pathError(root, err)
	}
	return w, nil
}

func (w *watch) open() error {
	info, err := os.Stat(w.root)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return connect.Errorf(connect.InvalidArgument, "path is not a directory: %s", w.root)
	}
	if !w.AllowNetworkMounts && isNetworkMount(w.root) {
		return connect.Errorf(connect.InvalidArgument, "path '%s' is on a network file system, where events may be missing: allow it with allowNetworkMounts", w.root)
	}
	w.watcher, err = fsnotify.NewWatcher()
	if err != nil {
		return connect.Errorf(connect.ResourceExhausted, "the kernel gives no more watchers (fs.inotify.max_user_instances): %v", err)
	}
	if err := w.add(w.root, nil); err != nil {
		_ = w.watcher.Close()
		return err
	}
	return nil
}

// add watches a directory and, when recursive, those below. found is called for all that lies in it already.
func (w *watch) add(directory string, found func(path string)) error {
	if err := w.watcher.Add(directory); err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return connect.Errorf(connect.ResourceExhausted, "the kernel watches no more directories (fs.inotify.max_user_watches)")
		}
		return err
	}
	if !w.Recursive {
		return nil
	}
	items, err := os.ReadDir(directory)
	if err != nil {
		return err
	}
	for _, item := range items {
		path := filepath.Join(directory, item.Name())
		if temporary, _ := isTemporary(path); temporary {
			continue
		}
		if found != nil {
			found(path)
		}
		if !item.IsDir() {
			continue
		}
		if err := w.add(path, found); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

func isNetworkMount(path string) bool {
	const (
		nfs, smb, cifs, smb2, fuse, ceph, v9fs = 0x6969, 0x517b, 0xff534d42, 0xfe534d42, 0x65735546, 0x00c36400, 0x01021997
	)
	var info unix.Statfs_t
	if err := unix.Statfs(path, &info); err != nil {
		return false
	}
	switch uint32(info.Type) {
	case nfs, smb, cifs, smb2, fuse, ceph, v9fs:
		return true
	}
	return false
}

// run reports events until the context ends, the directory is gone, or emit fails.
func (w *watch) run(ctx context.Context, emit func(Event) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err, open := <-w.watcher.Errors:
			if !open {
				return errWatchClosed
			}
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				return connect.Errorf(connect.DataLoss, "more happened in '%s' than the kernel keeps: events were lost", w.root)
			}
			return err
		case event, open := <-w.watcher.Events:
			if !open {
				return errWatchClosed
			}
			if err := w.report(event, emit); err != nil {
				return err
			}
		}
	}
}

var errWatchClosed = errors.New("the watch is closed")

func (w *watch) report(event fsnotify.Event, emit func(Event) error) error {
	if event.Name == w.root {
		if event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename) {
			return connect.Errorf(connect.NotFound, "the watched directory '%s' was removed or moved", w.root)
		}
		return nil
	}
	if temporary, _ := isTemporary(event.Name); temporary {
		if event.Has(fsnotify.Rename) {
			w.moving = event.Name
		}
		return nil
	}
	event.Op = w.uploaded(event)
	for _, kind := range eventTypes {
		if !event.Has(kind.operation) {
			continue
		}
		if err := w.emit(event.Name, kind.name, emit); err != nil {
			return err
		}
	}
	if !w.Recursive {
		return nil
	}
	if event.Has(fsnotify.Rename) || event.Has(fsnotify.Remove) {
		w.forget(event.Name)
	}
	if event.Has(fsnotify.Create) {
		return w.follow(event.Name, emit)
	}
	return nil
}

// uploaded gives a file that was written under a temporary name the events that writing in place would have had.
func (w *watch) uploaded(event fsnotify.Event) fsnotify.Op {
	moved := w.moving
	w.moving = ""
	if moved == "" || !event.Has(fsnotify.Create) || filepath.Dir(moved) != filepath.Dir(event.Name) {
		return event.Op
	}
	if _, replaces := isTemporary(moved); replaces {
		return event.Op&^fsnotify.Create | fsnotify.Write
	}
	return event.Op | fsnotify.Write
}

// follow watches a new directory. What was made in it before the watch began is reported now.
func (w *watch) follow(path string, emit func(Event) error) error {
	var missed []string
	err := account.As(w.user, func() error {
		if info, err := os.Lstat(path); err != nil || !info.IsDir() {
			return nil
		}
		err := w.add(path, func(path string) { missed = append(missed, path) })
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return err
	})
	for _, path := range missed {
		if err == nil {
			err = w.emit(path, eventTypes[0].name, emit)
		}
	}
	return err
}

// forget drops the watches of a directory that was moved away: they would go on under the old name.
func (w *watch) forget(path string) {
	for _, watched := range w.watcher.WatchList() {
		if watched == path || strings.HasPrefix(watched, path+"/") {
			_ = w.watcher.Remove(watched)
		}
	}
}

func (w *watch) emit(path, kind string, emit func(Event) error) error {
	name, err := filepath.Rel(w.root, path)
	if err != nil {
		return err
	}
	event := Event{Name: name, Type: kind}
	if w.IncludeEntry {
		_ = account.As(w.user, func() (err error) {
			event.Entry, err = entryAt(path, &account.Names{})
			return err
		})
	}
	return emit(event)
}

func (w *watch) close() { _ = w.watcher.Close() }

func (s *Service) watchDir(ctx context.Context, r *http.Request, req *watchRequest, out *connect.Sender) error {
	user, err := s.callUser(r)
	if err != nil {
		return err
	}
	if err := s.Watchers.enter(); err != nil {
		return err
	}
	defer s.Watchers.leave()
	w, err := openWatch(user, *req)
	if err != nil {
		return err
	}
	defer w.close()
	return stream(ctx, r, w, out)
}
