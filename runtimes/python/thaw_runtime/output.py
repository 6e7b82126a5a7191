"""print() and sys.stderr become log frames of the invocation that writes."""

import sys
from io import RawIOBase, TextIOWrapper

from _contextvars import ContextVar

from .connection import LOG

# A longer line is cut, so that text without line breaks needs no end of memory.
LINE_BYTES = 64 * 1024

STDOUT, STDERR = 1, 2

#: The invocation whose code runs, in each thread and each asyncio task.
current = ContextVar("invocation")


class Origin:
    """Who writes: an invocation, or the instance itself (stream 0). Keeps the line that is not complete yet."""

    __slots__ = ("stream", "done", "held")

    def __init__(self, stream):
        self.stream = stream
        self.done = False
        self.held = None


class LogStream(RawIOBase):
    """The binary side of sys.stdout and sys.stderr."""

    def __init__(self, output, source):
        self._output = output
        self._source = source

    def writable(self):
        return True

    def fileno(self):
        return self._source

    def write(self, data):
        return self._output.write(self._source, bytes(data))


class Output:
    def __init__(self, connection):
        self._connection = connection
        self._instance = Origin(0)
        #: Invocations whose code runs, by stream.
        self.running = {}
        #: Called after each write of user code.
        self.after_write = None

    def install(self):
        """Replaces sys.stdout and sys.stderr."""
        for name, source in (("stdout", STDOUT), ("stderr", STDERR)):
            stream = TextIOWrapper(LogStream(self, source), "utf-8", "backslashreplace", write_through=True)
            stream.mode = "w"
            setattr(sys, name, stream)

    def write(self, source, data):
        origin = self._origin()
        held = origin.held
        if held is None:
            held = origin.held = {}
        line_end = data.rfind(b"\n")
        if line_end < 0:
            rest = held.get(source, b"") + data
            if len(rest) >= LINE_BYTES:
                self._send(origin.stream, source, rest)
                rest = b""
            held[source] = rest
        else:
            lines = held.get(source, b"") + data[:line_end]
            held[source] = data[line_end + 1 :]
            self._send(origin.stream, source, lines)
        if self.after_write is not None:
            self.after_write()
        return len(data)

    def flush(self, origin=None):
        """Sends what has no line break yet."""
        origin = origin or self._instance
        if origin.held:
            for source, rest in origin.held.items():
                if rest:
                    self._send(origin.stream, source, rest)
            origin.held = None

    def _origin(self):
        origin = current.get(None)
        if origin is not None and not origin.done:
            return origin
        # A thread that the code started: its invocation is known when there is only one.
        if len(self.running) == 1:
            for origin in self.running.values():
                return origin
        return self._instance

    def _send(self, stream, source, text):
        prefix = b"\x01" if source == STDOUT else b"\x02"
        while len(text) > LINE_BYTES:
            cut = LINE_BYTES
            while cut > LINE_BYTES - 4 and text[cut] & 0xC0 == 0x80:
                cut -= 1
            self._connection.send(LOG, stream, prefix + text[:cut])
            text = text[cut:]
        self._connection.send(LOG, stream, prefix + text)
