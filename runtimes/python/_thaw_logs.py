"""sys.stdout and sys.stderr of a handler: what is written there goes to the log."""

import io

# A line this long is cut: memory of an instance is not for log lines without an end.
MAX_HELD_LOG_BYTES = 64 * 1024


class LogBytes(io.BufferedIOBase):
    """sys.stdout.buffer: bytes on their way to the log."""

    def __init__(self, runtime, source):
        self._runtime = runtime
        self._source = source

    def writable(self):
        return True

    def fileno(self):
        return self._source

    def write(self, data):
        data = bytes(data)
        self._runtime.log(self._source, data)
        return len(data)

    def flush(self):
        self._runtime.flush_log(self._source)

    # The log outlives whoever closes its stream: argparse, click and the interpreter's end do.
    def close(self):
        self.flush()


class LogText(io.TextIOBase):
    """sys.stdout or sys.stderr: lines become log frames of the invocation that printed them."""

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True
    write_through = False
    mode = "w"

    def __init__(self, runtime, source):
        self._runtime = runtime
        self._source = source
        self.name = "<stdout>" if source == 1 else "<stderr>"
        self.buffer = LogBytes(runtime, source)

    def writable(self):
        return True

    def isatty(self):
        return False

    def fileno(self):
        return self._source

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError("write() argument must be str, not " + type(text).__name__)
        self._runtime.log(self._source, text.encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self):
        self._runtime.flush_log(self._source)

    def reconfigure(self, **_options):
        """Accepted and without effect, so that code which sets an encoding runs."""

    def close(self):
        self.flush()


def whole_characters(data):
    """How much of `data` may be sent without cutting a UTF-8 character in two."""
    end = len(data)
    for back in range(1, min(4, end) + 1):
        byte = data[end - back]
        if byte & 0xC0 == 0x80:
            continue
        size = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return end - back if size > back and end > back else end
    return end
