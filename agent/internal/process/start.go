package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
	"thaw/agent/internal/settings"
)

// Config is what to run.
type Config struct {
	Cmd  string            `json:"cmd"`
	Args []string          `json:"args"`
	Envs map[string]string `json:"envs"`
	Cwd  *string           `json:"cwd,omitempty"`
}

// Spec is a process to start.
type Spec struct {
	Config  Config
	PTY     *PTY
	Tag     *string
	Stdin   bool
	User    *account.User
	Timeout time.Duration // 0: none
}

// ownName stands for the agent's own program, wherever that lies.
const ownName = "thaw-agent"

// Start runs a program in a session of its own. All output from its first byte on goes to the reader that comes with it.
func (m *Manager) Start(spec Spec) (*Process, *Reader, error) {
	prepared, err := m.prepare(&spec)
	if err != nil {
		return nil, nil, err
	}
	p := &Process{Tag: spec.Tag, Config: spec.Config, readers: map[*Reader]struct{}{}}
	p.room.L = &p.mu
	wires, err := connectWires(&spec, p)
	if err != nil {
		return nil, nil, err
	}
	defer wires.closeChildEnds()

	if spec.Config.Cmd == ownName {
		// By its descriptor, since the file may have been replaced, and the folder be one that the user cannot enter.
		own, err := os.Open("/proc/self/exe")
		if err != nil {
			return nil, nil, err
		}
		defer own.Close()
		prepared.path = "/proc/self/fd/" + strconv.Itoa(int(own.Fd()))
	}
	attributes := &syscall.ProcAttr{Dir: prepared.dir, Env: prepared.env, Files: wires.descriptors(), Sys: &syscall.SysProcAttr{Setsid: true}}
	if spec.PTY != nil {
		attributes.Sys.Setctty = true
	}
	if user := spec.User; int(user.UID) != os.Geteuid() || int(user.GID) != os.Getegid() {
		attributes.Sys.Credential = &syscall.Credential{Uid: user.UID, Gid: user.GID, Groups: user.Groups}
	}
	if err := m.launch(p, prepared.path, append([]string{spec.Config.Cmd}, spec.Config.Args...), attributes); err != nil {
		wires.closeOwnEnds()
		return nil, nil, startError(spec, err)
	}
	reader := p.Attach(nil)
	if spec.Timeout > 0 {
		p.mu.Lock()
		if p.exit == nil {
			p.deadline = time.AfterFunc(spec.Timeout, func() { _ = m.Signal(p, syscall.SIGKILL, true) })
		}
		p.mu.Unlock()
	}
	for channel := range p.outputs {
		if p.outputs[channel].open {
			go p.pump(channel)
		}
	}
	return p, reader, nil
}

// launch makes the process known before it can be reaped.
func (m *Manager) launch(p *Process, path string, argv []string, attributes *syscall.ProcAttr) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return connect.Errorf(connect.Unavailable, "the sandbox is shutting down")
	}
	pid, err := syscall.ForkExec(path, argv, attributes)
	if err != nil {
		return err
	}
	p.PID = pid
	m.running[pid] = p
	return nil
}

type prepared struct {
	path, dir string
	env       []string
}

func (m *Manager) prepare(spec *Spec) (*prepared, error) {
	for _, text := range append([]string{spec.Config.Cmd}, spec.Config.Args...) {
		if strings.ContainsRune(text, 0) {
			return nil, connect.Errorf(connect.InvalidArgument, "the command holds a NUL character")
		}
	}
	if spec.Config.Cmd == "" {
		return nil, connect.Errorf(connect.InvalidArgument, "the command (process.cmd) is empty")
	}
	env, err := environment(m.settings.Env(), spec)
	if err != nil {
		return nil, err
	}
	result := &prepared{env: env}
	err = account.As(spec.User, func() error {
		var err error
		if result.dir, err = directory(m.settings, spec); err != nil {
			return err
		}
		if spec.Config.Cmd != ownName {
			result.path, err = lookPath(spec.Config.Cmd, result.dir, env)
		}
		return err
	})
	return result, err
}

// directory is where the process starts. It has to exist only when the caller named it.
func directory(settings *settings.Settings, spec *Spec) (string, error) {
	if spec.Config.Cwd != nil && *spec.Config.Cwd != "" {
		dir := resolve(spec.User, *spec.Config.Cwd)
		info, err := os.Stat(dir + "/.")
		switch {
		case errors.Is(err, os.ErrNotExist):
			return "", connect.Errorf(connect.InvalidArgument, "cwd '%s' does not exist", dir)
		case errors.Is(err, os.ErrPermission):
			return "", connect.Errorf(connect.PermissionDenied, "cwd '%s': permission denied for user '%s'", dir, spec.User.Name)
		case err != nil || !info.IsDir():
			return "", connect.Errorf(connect.InvalidArgument, "cwd '%s' is not a directory", dir)
		}
		return dir, nil
	}
	for _, dir := range []string{settings.Workdir(spec.User), spec.User.Home} {
		if _, err := os.Stat(dir + "/."); err == nil {
			return dir, nil
		}
	}
	return "/", nil
}

func resolve(user *account.User, path string) string { return settings.Resolve(user, path) }

// lookPath finds a program with the PATH of the process, not of the agent.
func lookPath(cmd, dir string, env []string) (string, error) {
	if strings.Contains(cmd, "/") {
		path := cmd
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, os.ErrPermission):
			return "", connect.Errorf(connect.PermissionDenied, "command '%s': permission denied", cmd)
		case err != nil:
			return "", notFound("command '%s' not found", cmd)
		case info.IsDir():
			return "", connect.Errorf(connect.InvalidArgument, "command '%s' is a directory", cmd)
		}
		return path, nil
	}
	search := ""
	for _, variable := range env {
		if value, ok := strings.CutPrefix(variable, "PATH="); ok {
			search = value
		}
	}
	for _, folder := range filepath.SplitList(search) {
		path := filepath.Join(folder, cmd)
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", notFound("command '%s' not found in PATH (%s)", cmd, search)
}

// notFound is an invalid argument to any client; a detail tells it from the others.
func notFound(format string, args ...any) *connect.Error {
	err := connect.Errorf(connect.InvalidArgument, format, args...)
	err.Details = []connect.Detail{{Type: "thaw.agent.CommandNotFound"}}
	return err
}

func startError(spec Spec, err error) error {
	var coded *connect.Error
	if errors.As(err, &coded) {
		return err
	}
	message := fmt.Sprintf("error starting process '%s' as user '%s': %v", spec.Config.Cmd, spec.User.Name, err)
	code := connect.InvalidArgument
	switch {
	// The file is there, so it is a script, and what its first line names is missing.
	case errors.Is(err, os.ErrNotExist):
		return notFound("%s", message)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		code = connect.ResourceExhausted
	case errors.Is(err, os.ErrPermission):
		code = connect.PermissionDenied
	}
	return connect.Errorf(code, "%s", message)
}
