// thaw-agent runs inside every sandbox: processes, terminals, files and ports, over E2B's envd protocol.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"

	"thaw/agent/internal/bridge"
	"thaw/agent/internal/process"
	"thaw/agent/internal/server"
	"thaw/agent/internal/settings"
	"thaw/agent/internal/sftp"
)

const usage = `usage:
  thaw-agent serve --socket PATH [--socket-mode 0666] [--listen HOST:PORT] [--root-dir DIR]
  thaw-agent bridge --socket PATH
  thaw-agent hostname NAME
  thaw-agent sftp
`

// memoryLimitBytes makes the collector work harder rather than take memory from the sandbox; it is not a hard limit.
const memoryLimitBytes = 96 << 20

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("a command is missing\n" + usage))
	}
	debug.SetMemoryLimit(memoryLimitBytes)
	var err error
	switch command, args := os.Args[1], os.Args[2:]; command {
	case "serve":
		err = serve(args)
	case "bridge":
		err = runBridge(args)
	case "hostname":
		if len(args) != 1 {
			err = errors.New("hostname takes a name, and nothing else")
		} else {
			err = syscall.Sethostname([]byte(args[0]))
		}
	case "sftp":
		if len(args) > 0 {
			err = errors.New("sftp takes no arguments")
		} else {
			err = sftp.Serve()
		}
	default:
		err = fmt.Errorf("unknown command '%s'\n%s", command, usage)
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "thaw-agent:", err)
	os.Exit(1)
}

func flags(name string) (set *flag.FlagSet, socket *string) {
	set = flag.NewFlagSet(name, flag.ExitOnError)
	return set, set.String("socket", "", "Unix socket of the agent")
}

func runBridge(args []string) error {
	set, socket := flags("bridge")
	_ = set.Parse(args)
	if *socket == "" || set.NArg() > 0 {
		return errors.New("bridge takes --socket PATH, and nothing else")
	}
	return bridge.Run(*socket)
}

func serve(args []string) error {
	set, socket := flags("serve")
	mode := set.String("socket-mode", "0666", "permissions of the socket")
	listen := set.String("listen", "", "TCP address to listen on as well")
	rootDir := set.String("root-dir", "", "home directory of every user (for sandboxes that share the host's files)")
	_ = set.Parse(args)
	bits, err := strconv.ParseUint(*mode, 8, 9)
	if err != nil || *socket == "" && *listen == "" || set.NArg() > 0 {
		return errors.New("serve takes --socket PATH (or --listen HOST:PORT), --socket-mode with octal digits, --root-dir DIR, and nothing else")
	}
	if *rootDir != "" {
		if *rootDir, err = filepath.Abs(*rootDir); err != nil {
			return err
		}
	}
	// An agent that inherited a closed or tiny umask would make files that their owners cannot use.
	syscall.Umask(0o022)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	// Taken and dropped, not ignored: every program that the agent starts would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGPIPE)

	told := &settings.Settings{RootDir: *rootDir}
	processes := process.NewManager(told)
	web := server.New(told, processes)
	listeners, err := listenAll(*socket, fs.FileMode(bits), *listen)
	if err != nil {
		return err
	}
	failed := make(chan error, len(listeners))
	for _, listener := range listeners {
		go func() { failed <- web.Serve(listener) }()
	}
	select {
	case err = <-failed:
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
	case <-stop:
	}
	processes.Stop()
	web.Close()
	return err
}

func listenAll(socket string, mode fs.FileMode, address string) ([]net.Listener, error) {
	var listeners []net.Listener
	if socket != "" {
		listener, err := server.ListenUnix(socket, mode)
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, listener)
	}
	if address != "" {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return nil, err
		}
		fmt.Fprintln(os.Stderr, "thaw-agent: listening on", listener.Addr())
		listeners = append(listeners, listener)
	}
	return listeners, nil
}
