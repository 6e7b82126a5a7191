"""One invocation at a time, on the thread that reads the connection: nothing is handed from thread to thread.

While the handler runs, nobody waits for frames. The kernel's signal-driven I/O tells of what arrives meanwhile: SIGIO
interrupts the handler for a cancel, a ping, or the end of the connection. It costs nothing in between, since Linux sends
no SIGIO while a read is waiting.
"""

import os

import _signal
from _thread import get_ident

from .asynchronous import run_coroutine, run_generator
from .connection import CANCEL, PING
from .server import Cancelled, Server

_main_thread = get_ident()
_own = os.path.dirname(os.path.abspath(__file__)) + os.sep


class InlineServer(Server):
    def __init__(self, *arguments):
        Server.__init__(self, *arguments)
        self._interruptible = None
        self._signalled = False

    def serve(self):
        self._watch()
        next_frame = self.connection.next_frame
        dispatch = self.dispatch
        while True:
            dispatch(*next_frame())

    def start(self, invocation):
        try:
            self._interruptible = invocation
            if self._signalled:
                self._look()
            value = self.begin(invocation)
            if hasattr(value, "__await__"):
                value = run_coroutine(value)
            stream = self.stream_of(invocation, value)
            if stream is None:
                self._interruptible = None
                self.answer(invocation, value)
            else:
                self._stream(invocation, *stream)
        except BaseException as error:
            self._interruptible = None
            self.fail(invocation, error)
        finally:
            self._signalled = False

    def stop(self, invocation):
        # A cancel that was read after the invocation had ended.
        pass

    def _stream(self, invocation, meta, pieces):
        if hasattr(pieces, "__aiter__"):
            pieces = run_generator(pieces)
        content_type = None
        try:
            for piece in pieces:
                content_type = self.send_piece(invocation, meta, content_type, piece)
                if self._signalled:
                    self._look()
        finally:
            self._interruptible = None
            if hasattr(pieces, "close"):
                pieces.close()
        self.end_stream(invocation, meta, content_type)

    def _watch(self):
        try:
            from fcntl import F_GETFL, F_SETFL, F_SETOWN, fcntl

            _signal.signal(_signal.SIGIO, self._on_signal)
            descriptor = self.connection.sock.fileno()
            fcntl(descriptor, F_SETOWN, os.getpid())
            fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | os.O_ASYNC)
        except (ImportError, OSError, ValueError):
            # A kernel without it: frames wait until the handler returns.
            return
        self.output.after_write = self._after_write

    def _on_signal(self, _number, frame):
        if self._interruptible is None or frame is None or frame.f_code.co_filename.startswith(_own):
            # Our own code is never interrupted, so that no frame is sent by half.
            self._signalled = True
        else:
            self._look()

    def _after_write(self):
        if self._signalled and get_ident() == _main_thread:
            self._look()

    def _look(self):
        """Acts on frames that arrived while user code runs. Raises Cancelled in it."""
        self._signalled = False
        self.connection.read_available()
        frames = self.connection.frames
        invocation = self._interruptible
        for _ in range(len(frames)):
            kind, stream, payload = frames.popleft()
            if kind == PING:
                self.dispatch(kind, stream, payload)
            elif kind == CANCEL and invocation is not None and stream == invocation.stream:
                invocation.cancelled = True
            else:
                frames.append((kind, stream, payload))
        if invocation is not None and invocation.cancelled:
            self._interruptible = None
            raise Cancelled
