//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"thaw/protocol"
)

// program is what a version runs: the command that it was deployed with, resolved.
type program struct {
	path string
	argv []string
	dir  string
}

// name is what people call the program.
func (p program) name() string { return filepath.Base(p.argv[0]) }

func loadProgram(load protocol.Load, env environment) (program, *protocol.Failure) {
	if info, err := os.Stat(load.CodeDir); err != nil || !info.IsDir() {
		return program{}, &protocol.Failure{Type: "NotFound", Message: fmt.Sprintf("There is no code folder %s.", load.CodeDir)}
	}
	path, failure := findProgram(load.Command, load.CodeDir, env["PATH"])
	if failure != nil {
		return program{}, failure
	}
	return program{path: path, argv: load.Command, dir: load.CodeDir}, nil
}

// findProgram resolves the first word of a command: a file of the code, else a program on the search path.
func findProgram(command []string, codeDir, searchPath string) (string, *protocol.Failure) {
	if len(command) == 0 || command[0] == "" {
		return "", &protocol.Failure{Type: "NotFound", Message: "The function has no command to run."}
	}
	name := command[0]
	inCode := name
	if !filepath.IsAbs(name) {
		inCode = filepath.Join(codeDir, name)
	}
	if isExecutable(inCode) {
		return inCode, nil
	}
	if !strings.Contains(name, "/") {
		for _, dir := range filepath.SplitList(searchPath) {
			if path := filepath.Join(dir, name); filepath.IsAbs(path) && isExecutable(path) {
				return path, nil
			}
		}
	}
	if info, err := os.Stat(inCode); err == nil {
		what := "is not executable: deploy it with mode 755, or name its interpreter in the command"
		if info.IsDir() {
			what = "is a folder"
		}
		return "", &protocol.Failure{Type: "NotExecutable", Message: fmt.Sprintf("%s %s.", inCode, what)}
	}
	return "", &protocol.Failure{
		Type:    "NotFound",
		Message: fmt.Sprintf("There is no program %s, neither in %s nor on the search path %s.", name, codeDir, searchPath),
	}
}

func isExecutable(path string) bool {
	const executeOK = 1
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && syscall.Access(path, executeOK) == nil
}
