//go:build linux

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"thaw/protocol"
)

// maxVariableBytes is the kernel's MAX_ARG_STRLEN: a longer NAME=value, with its zero byte, cannot be passed at all.
const maxVariableBytes = 128 << 10

type environment map[string]string

func environmentOf(pairs []string, more map[string]string) environment {
	env := environment{}
	for _, pair := range pairs {
		if name, value, found := strings.Cut(pair, "="); found && protocol.ForUser(pair) {
			env[name] = value
		}
	}
	for name, value := range more {
		env[name] = value
	}
	return env
}

// forResident returns the environment of a program that runs for long: what it prints is not to wait in a buffer of Python's.
func (env environment) forResident() environment {
	if _, set := env["PYTHONUNBUFFERED"]; !set {
		env["PYTHONUNBUFFERED"] = "1"
	}
	return env
}

// withDependencies lets a program find what the deploy installed beside its code.
func (env environment) withDependencies(codeDir string) environment {
	prepend := func(name, path string) {
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			return
		}
		if rest := env[name]; rest != "" {
			path += string(os.PathListSeparator) + rest
		}
		env[name] = path
	}
	python := filepath.Join(codeDir, ".thaw", "python")
	prepend("PYTHONPATH", python)
	prepend("PATH", filepath.Join(python, "bin"))
	prepend("PATH", filepath.Join(codeDir, "node_modules", ".bin"))
	return env
}

// of returns the environment of the program of one invocation.
func (env environment) of(call *protocol.Call, function, payloadFile string, withPayload bool) []string {
	meta := call.Meta
	own := environment{
		"THAW_INVOCATION_ID": meta.ID,
		"THAW_ATTEMPT":       strconv.Itoa(meta.Attempt),
		"THAW_DEADLINE_MS":   strconv.FormatInt(meta.DeadlineMs, 10),
		"THAW_FUNCTION_NAME": function,
	}
	if meta.HTTP != nil {
		own["THAW_HTTP_METHOD"] = meta.HTTP.Method
		own["THAW_HTTP_PATH"] = meta.HTTP.Path
		own["THAW_HTTP_QUERY"] = meta.HTTP.Query
	}
	if payloadFile != "" {
		own["FUNCTION_PAYLOAD_FILE"] = payloadFile
	}
	if withPayload && fitsVariable("FUNCTION_PAYLOAD", call.Body) {
		own["FUNCTION_PAYLOAD"] = string(call.Body)
	}
	return env.with(own)
}

// with returns the environment of a program, as NAME=value, with variables that come before those of the same name.
func (env environment) with(own environment) []string {
	pairs := make([]string, 0, len(env)+len(own))
	for name, value := range env {
		if _, replaced := own[name]; !replaced {
			pairs = append(pairs, name+"="+value)
		}
	}
	for name, value := range own {
		pairs = append(pairs, name+"="+value)
	}
	sort.Strings(pairs)
	return pairs
}

// fitsVariable reports whether an environment variable can hold the value: it is short, and without zero bytes.
func fitsVariable(name string, value []byte) bool {
	return len(name)+len("=")+len(value)+1 <= maxVariableBytes && bytes.IndexByte(value, 0) < 0
}
