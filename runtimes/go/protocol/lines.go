package protocol

import (
	"bytes"
	"unicode/utf8"
)

const maxLineBytes = 16 << 10

// Lines cuts a stream of bytes into lines, each with its line break. A line that is longer than 16 KiB becomes several.
type Lines struct {
	Emit func(line string)
	rest []byte
}

// Push takes more bytes, and emits each line that they complete.
func (lines *Lines) Push(data []byte) {
	lines.rest = append(lines.rest, data...)
	rest := lines.rest
	for {
		end := bytes.IndexByte(rest, '\n')
		if end >= 0 && end <= maxLineBytes {
			lines.Emit(string(rest[:end+1]))
			rest = rest[end+1:]
			continue
		}
		if len(rest) <= maxLineBytes {
			break
		}
		cut := maxLineBytes
		for cut > maxLineBytes-utf8.UTFMax && !utf8.RuneStart(rest[cut]) {
			cut--
		}
		lines.Emit(string(rest[:cut]))
		rest = rest[cut:]
	}
	lines.rest = append(lines.rest[:0], rest...)
}

// Flush emits what was written without a line break at its end.
func (lines *Lines) Flush() {
	if len(lines.rest) > 0 {
		lines.Emit(string(lines.rest))
		lines.rest = lines.rest[:0]
	}
}
