//go:build linux

package main

import (
	"encoding/json"
	"unicode/utf8"

	"thaw/protocol"
)

const (
	// Of an answer up to this size the whole decides its content type.
	maxHeldBytes = 1 << 20
	maxTailBytes = 8 << 10

	contentJSON  = "application/json"
	contentText  = "text/plain; charset=utf-8"
	contentBytes = "application/octet-stream"
)

// answer is what a program writes to stdout. It is held back until the program ends, since it counts only with exit code
// 0; what is larger than 1 MiB is passed on as it comes, as text or bytes by its first part, never as JSON.
type answer struct {
	call      *protocol.Call
	held      []byte
	streaming bool
}

func (a *answer) take(data []byte) {
	if a.streaming {
		// Of a cancelled call the rest is read and dropped.
		_ = a.call.Chunk(data)
		return
	}
	a.held = append(a.held, data...)
	if len(a.held) <= maxHeldBytes {
		return
	}
	contentType := contentBytes
	if utf8.Valid(wholeCharacters(a.held)) {
		contentType = contentText
	}
	a.streaming = true
	a.call.Begin(protocol.ResultMeta{ContentType: contentType})
	_ = a.call.Chunk(a.held)
	a.held = nil
}

func (a *answer) finish() {
	if a.streaming {
		a.call.End()
		return
	}
	a.call.Answer(protocol.ResultMeta{ContentType: contentTypeOf(a.held)}, a.held)
}

func contentTypeOf(body []byte) string {
	switch {
	case !utf8.Valid(body):
		return contentBytes
	case json.Valid(body):
		return contentJSON
	default:
		return contentText
	}
}

// wholeCharacters leaves out a character at the end that is not complete yet.
func wholeCharacters(data []byte) []byte {
	for back := 1; back < utf8.UTFMax && back <= len(data); back++ {
		start := len(data) - back
		if utf8.RuneStart(data[start]) {
			if !utf8.FullRune(data[start:]) {
				return data[:start]
			}
			break
		}
	}
	return data
}

// tail keeps the end of what is written to it.
type tail struct{ held []byte }

func (t *tail) take(data []byte) {
	t.held = append(t.held, data...)
	if len(t.held) > 4*maxTailBytes {
		t.held = append(t.held[:0], t.held[len(t.held)-maxTailBytes:]...)
	}
}

func (t *tail) text() string {
	end := t.held
	if len(end) > maxTailBytes {
		end = end[len(end)-maxTailBytes:]
	}
	for skipped := 0; skipped < utf8.UTFMax-1 && len(end) > 0 && !utf8.RuneStart(end[0]); skipped++ {
		end = end[1:]
	}
	return string(end)
}
