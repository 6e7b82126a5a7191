package protocol

import (
	"strings"
	"unicode/utf8"
)

// Load says which code to load. Sent once, before any invocation.
type Load struct {
	Function string            `json:"function"`
	Version  string            `json:"version"`
	Contract string            `json:"contract"`
	Handler  string            `json:"handler"`
	Command  []string          `json:"command"`
	CodeDir  string            `json:"code_dir"`
	Env      map[string]string `json:"env"`
	// SecretFiles are contents by file name.
	SecretFiles map[string]string `json:"secret_files"`
	TimeoutMs   int64             `json:"timeout_ms"`
	MemoryMib   int64             `json:"memory_mib"`
	Concurrency int               `json:"concurrency"`
	// Port is where a web server listens; 0: anywhere.
	Port int `json:"port"`
}

// Names of hooks.
const (
	BeforeSnapshot = "before_snapshot"
	AfterRestore   = "after_restore"
)

// Hook says what is about to happen, or has happened, to the whole instance.
type Hook struct {
	Name string `json:"hook"`
	// What a copy of an instance gets, after a restore: variables of the environment, secrets by file name, Unix
	// milliseconds, random bytes, and its name.
	Env       map[string]string `json:"env,omitempty"`
	Files     map[string]string `json:"files,omitempty"`
	TimeMs    int64             `json:"time_ms,omitempty"`
	Entropy   []byte            `json:"entropy,omitempty"`
	SandboxID string            `json:"sandbox_id,omitempty"`
}

// InvokeMeta describes one invocation; its body travels beside it.
type InvokeMeta struct {
	ID          string       `json:"id"`
	Attempt     int          `json:"attempt"`
	DeadlineMs  int64        `json:"deadline_ms"`
	ContentType string       `json:"content_type"`
	More        bool         `json:"more"`
	Trigger     string       `json:"trigger"`
	HTTP        *HTTPRequest `json:"http"`
}

// HTTPRequest is what invoked the function, with trigger "http".
type HTTPRequest struct {
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Query   string            `json:"query"`
	Headers map[string]string `json:"headers"`
}

// ResultMeta describes an answer. Status and Headers are for HTTP triggers.
type ResultMeta struct {
	ContentType string         `json:"content_type"`
	More        bool           `json:"more"`
	Status      int            `json:"status,omitempty"`
	Headers     map[string]any `json:"headers,omitempty"`
}

// Bytes reports how large the meta is in its frame.
func (meta ResultMeta) Bytes() int { return len(mustEncode(meta)) }

// Failure says why code could not be loaded or did not answer.
type Failure struct {
	// Reason is ReasonError when empty; load failures have none.
	Reason  string `json:"reason,omitempty"`
	Type    string `json:"type"`
	Message string `json:"message"`
	Stack   string `json:"stack,omitempty"`
}

const (
	ReasonError          = "error"
	ReasonInvalidPayload = "invalid_payload"
	ReasonCancelled      = "cancelled"
)

// Source is where a line of log came from.
type Source byte

const (
	Stdout Source = 1
	Stderr Source = 2
)

// bounded cuts what the worker would refuse. Escaped as JSON each byte may take six, and all must fit one frame.
func (failure Failure) bounded() Failure {
	failure.Type = CutText(failure.Type, 256)
	failure.Message = CutText(failure.Message, 64<<10)
	failure.Stack = CutText(failure.Stack, 64<<10)
	return failure
}

// CutText returns the longest part of a text's beginning that is at most limit bytes and ends between characters.
func CutText(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	end := limit
	for end > 0 && end > limit-utf8.UTFMax && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}

func validText(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }
