package server

import (
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"io"

	"golang.org/x/sys/unix"

	"thaw/agent/internal/account"
	"thaw/agent/internal/connect"
	"thaw/agent/internal/files"
	"thaw/agent/internal/process"
	"thaw/agent/internal/settings"
)

// initRequest is envd's, and more. All fields may be missing; what is missing stays as it is.
type initRequest struct {
	EnvVars        map[string]string `json:"envVars"`
	AccessToken    *string           `json:"accessToken"`
	Hostname       string            `json:"hostname"`
	Timestamp      *time.Time        `json:"timestamp"`
	DefaultUser    *string           `json:"defaultUser"`
	DefaultWorkdir *string           `json:"defaultWorkdir"`
	MakeUser       bool              `json:"makeUser"` // The default user is made where the image does not have it.
	Files          []initFile        `json:"files"`
	Main           *mainProcess      `json:"main"`
	Entropy        []byte            `json:"entropyBase64"`
	// Restored: this is a clone, not the sandbox that was snapshotted. Only to /snapshot/resume.
	Restored bool `json:"restored"`
}

// initFile is written as its owner, who is the default user if empty.
type initFile struct {
	Path    string `json:"path"`
	Content []byte `json:"contentBase64"`
	Mode    mode   `json:"mode"`
	Owner   string `json:"owner"`
}

type mainProcess struct {
	process.Config
	User string `json:"user"`
}

// mode takes 384 as well as "0600".
type mode fs.FileMode

func (m *mode) UnmarshalJSON(text []byte) error {
	number, err := strconv.ParseUint(strings.Trim(string(text), `"`), modeBase(text), 32)
	if err != nil || number > 0o7777 {
		return errors.New("mode must be a number, or text with octal digits such as \"0600\"")
	}
	*m = mode(number)
	return nil
}

func modeBase(text []byte) int {
	if bytes.HasPrefix(text, []byte{'"'}) {
		return 8
	}
	return 10
}

func (s *Server) init(w http.ResponseWriter, r *http.Request) {
	req, failure := readInit(w, r)
	if failure == nil {
		s.change.Lock()
		defer s.change.Unlock()
		if err := s.apply(req); err != nil {
			failure = connect.AsError(r.Context(), err)
		}
	}
	if failure != nil {
		files.WriteError(w, failure)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func readInit(w http.ResponseWriter, r *http.Request) (*initRequest, *connect.Error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, connect.MaxMessageBytes))
	if err != nil {
		return nil, connect.Errorf(connect.InvalidArgument, "the request cannot be read: %v", err)
	}
	req := &initRequest{}
	return req, connect.Decode(body, req)
}

// apply checks before it changes, so that a refused call leaves all as it was.
func (s *Server) apply(req *initRequest) error {
	for name, value := range req.EnvVars {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return connect.Errorf(connect.InvalidArgument, "envVars: %q cannot be set", name)
		}
	}
	if req.MakeUser && req.DefaultUser != nil {
		if err := s.makeUser(req); err != nil {
			return connect.Errorf(connect.InvalidArgument, "defaultUser: %v", err)
		}
	}
	if req.DefaultUser != nil && *req.DefaultUser != "" {
		if _, err := s.settings.User(*req.DefaultUser); err != nil {
			return connect.Errorf(connect.InvalidArgument, "defaultUser: %v", err)
		}
	}
	if len(req.Hostname) > 64 || strings.ContainsAny(req.Hostname, "\x00/ \n") {
		return connect.Errorf(connect.InvalidArgument, "hostname: at most 64 characters of a host name")
	}
	s.settings.Apply(settings.Change{Token: req.AccessToken, Env: req.EnvVars, User: req.DefaultUser, Workdir: req.DefaultWorkdir})
	takeIdentity(req)
	for _, file := range req.Files {
		if err := s.writeFile(file); err != nil {
			return err
		}
	}
	return s.startMain(req.Main)
}

// makeUser leaves the default as it is where there is no such account and the agent may not make one: it is not root, or
// the files of accounts are the host's.
func (s *Server) makeUser(req *initRequest) error {
	if os.Getpid() == 1 && os.Geteuid() == 0 {
		return account.Make(*req.DefaultUser)
	}
	if _, err := s.settings.User(*req.DefaultUser); err != nil {
		req.DefaultUser = nil
	}
	return nil
}

func (s *Server) writeFile(file initFile) error {
	user, err := s.settings.User(file.Owner)
	if err != nil {
		return connect.Errorf(connect.InvalidArgument, "files: owner of '%s': %v", file.Path, err)
	}
	if file.Path == "" || strings.ContainsRune(file.Path, 0) {
		return connect.Errorf(connect.InvalidArgument, "files: an entry has no usable path")
	}
	_, err = files.Write(user, settings.Resolve(user, file.Path), bytes.NewReader(file.Content), fs.FileMode(file.Mode)&fs.ModePerm, nil)
	return err
}

// startMain starts the service process once in the life of a sandbox; a restored clone has it already.
func (s *Server) startMain(main *mainProcess) error {
	if main == nil || s.main {
		return nil
	}
	user, err := s.settings.User(main.User)
	if err != nil {
		return connect.Errorf(connect.InvalidArgument, "main: %v", err)
	}
	tag := "main"
	_, reader, err := s.processes.Start(process.Spec{Config: main.Config, Tag: &tag, User: user})
	if err != nil {
		return err
	}
	reader.Detach()
	s.main = true
	return nil
}

// takeIdentity changes what belongs to the whole machine, and only where that is the sandbox's own: a process on a
// host must not rename the host. What the kernel does not allow stays.
func takeIdentity(req *initRequest) {
	if os.Getpid() != 1 {
		return
	}
	if req.Hostname != "" {
		_ = unix.Sethostname([]byte(req.Hostname))
	}
	if len(req.Entropy) > 0 {
		// Anybody may stir the pool; clones of one memory image would else draw the same numbers.
		if pool, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0); err == nil {
			_, _ = pool.Write(req.Entropy)
			if isMachine() {
				_, _, _ = unix.Syscall(unix.SYS_IOCTL, pool.Fd(), unix.RNDRESEEDCRNG, 0)
			}
			_ = pool.Close()
		}
	}
	if req.Timestamp != nil && isMachine() {
		if drift := time.Until(*req.Timestamp).Abs(); drift > 50*time.Millisecond {
			now := unix.NsecToTimeval(req.Timestamp.UnixNano())
			_ = unix.Settimeofday(&now)
		}
	}
}

// isMachine is true for the first process of a virtual machine, which has its clock to itself. Containers share the
// clock of their host; the number of the initial pid namespace is fixed in the kernel (PROC_PID_INIT_INO).
func isMachine() bool {
	const initialPidNamespace = 0xEFFFFFFC
	var stat syscall.Stat_t
	return os.Getpid() == 1 && syscall.Stat("/proc/self/ns/pid", &stat) == nil && stat.Ino == initialPidNamespace
}
