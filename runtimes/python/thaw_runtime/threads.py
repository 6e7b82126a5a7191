"""Several invocations at a time of a handler that is not async: a thread for each, while the main thread reads."""

from threading import Lock, Thread, get_ident

from _queue import SimpleQueue

from .asynchronous import run_coroutine, run_generator
from .server import Cancelled, Server


class ThreadServer(Server):
    def __init__(self, *arguments):
        Server.__init__(self, *arguments)
        self._waiting = SimpleQueue()
        self._lock = Lock()
        self._idle = 0
        self._threads = 0

    def serve(self):
        while True:
            self.dispatch(*self.connection.next_frame())

    def start(self, invocation):
        self.running[invocation.stream] = invocation
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            elif self._threads < self.load["concurrency"]:
                self._threads += 1
                Thread(target=self._work, name="thaw-%d" % self._threads, daemon=True).start()
        self._waiting.put(invocation)

    def stop(self, invocation):
        with self._lock:
            if invocation.cancelled:
                return
            invocation.cancelled = True
            if invocation.thread is None:
                return
            try:
                from ctypes import c_ulong, py_object, pythonapi

                # The one way to stop a thread: it takes effect at the next line of Python that the thread runs.
                pythonapi.PyThreadState_SetAsyncExc(c_ulong(invocation.thread), py_object(Cancelled))
            except (ImportError, AttributeError):
                pass

    def _work(self):
        while True:
            self._run(self._waiting.get())
            with self._lock:
                self._idle += 1

    def _run(self, invocation):
        try:
            stream = content_type = None
            try:
                with self._lock:
                    invocation.thread = get_ident()
                value = self.begin(invocation)
                if hasattr(value, "__await__"):
                    value = run_coroutine(value)
                stream = self.stream_of(invocation, value)
                if stream is not None:
                    content_type = self._send_pieces(invocation, *stream)
            finally:
                self._shield(invocation)
            if stream is None:
                self.answer(invocation, value)
            else:
                self.end_stream(invocation, stream[0], content_type)
        except BaseException as error:
            self.fail(invocation, error)

    def _shield(self, invocation):
        """From here on the thread runs our own code, which must not be stopped half-way."""
        with self._lock:
            invocation.thread = None
        if invocation.cancelled:
            # A Cancelled that is on its way arrives within the first rounds of this loop.
            for _ in range(100):
                pass

    def _send_pieces(self, invocation, meta, pieces):
        if hasattr(pieces, "__aiter__"):
            pieces = run_generator(pieces)
        content_type = None
        try:
            for piece in pieces:
                content_type = self.send_piece(invocation, meta, content_type, piece)
        finally:
            if hasattr(pieces, "close"):
                pieces.close()
        return content_type
