"""One invocation: what its handler may know, how its answer is sent in pieces, which thread runs it."""

from time import time

from _thaw_frames import CHUNK, END, HEADER, RESULT, meta_bytes
from _thaw_values import PIECE_BYTES, encode_piece, piece_type


class Context:
    """What a handler may know of its invocation."""

    __slots__ = ("invocation_id", "attempt", "deadline_ms", "function_name", "function_version", "memory_limit_mib")

    def __init__(self, meta, load):
        self.invocation_id = meta["id"]
        self.attempt = meta["attempt"]
        self.deadline_ms = meta["deadline_ms"]
        self.function_name = load["function"]
        self.function_version = load["version"]
        self.memory_limit_mib = load["memory_mib"]

    def remaining_ms(self):
        """Milliseconds until the worker gives up on this invocation; never negative."""
        return max(0, int(self.deadline_ms - time() * 1000))


class Invocation:
    __slots__ = ("stream", "meta", "body", "held", "done", "cancelled", "task")

    def __init__(self, stream, meta, body):
        self.stream = stream
        self.meta = meta
        self.body = body
        # Output without its line end, by source: index 1 and 2.
        self.held = None
        self.done = False
        self.cancelled = False
        self.task = None


class AnswerStream:
    """An answer in pieces: each is sent as it comes; the first decides on the content type."""

    def __init__(self, runtime, invocation, head):
        self._runtime = runtime
        self._invocation = invocation
        self._head = head or {}
        self._kind = None

    def write(self, piece):
        stream = self._invocation.stream
        frames = b""
        if self._kind is None:
            kind = piece_type(piece)
            data = encode_piece(kind, piece)
            self._kind = kind
            meta = meta_bytes(dict({"content_type": kind, "more": True}, **self._head))
            frames = HEADER.pack(len(meta) + 5, RESULT, stream) + meta
        else:
            data = encode_piece(self._kind, piece)
        for offset in range(0, len(data), PIECE_BYTES):
            part = data[offset : offset + PIECE_BYTES]
            self._runtime.send(frames + HEADER.pack(len(part) + 5, CHUNK, stream) + part)
            frames = b""
        if frames:
            self._runtime.send(frames)

    def end(self):
        if self._kind is None:
            self._runtime.answer_whole(self._invocation, self._head, "")
        elif self._runtime.finish(self._invocation):
            self._runtime.send_frame(END, self._invocation.stream)


class Threads:
    """As many threads as were ever needed at once, at most `limit`."""

    def __init__(self, run, limit):
        from _queue import SimpleQueue
        from threading import Semaphore, Thread

        self._thread = Thread
        self._run = run
        self._limit = limit
        self._count = 0
        self._idle = Semaphore(0)
        self._queue = SimpleQueue()

    def put(self, invocation):
        self._queue.put(invocation)
        if not self._idle.acquire(blocking=False) and self._count < self._limit:
            self._count += 1
            self._thread(target=self._work, name="invocations-%d" % self._count, daemon=True).start()

    def _work(self):
        while True:
            self._run(self._queue.get())
            self._idle.release()
