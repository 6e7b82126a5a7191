"""What all ways of running a handler share: invocations, their frames and their answers."""

from time import time

from .connection import BODY, BODY_END, CANCEL, END, FAILED, HOOK, HOOK_DONE, INVOKE, PING, PONG, TEXT
from .output import Origin, current
from .values import (
    InvalidPayload,
    decode_json,
    encode,
    encode_first_piece,
    encode_piece,
    read_event,
    read_http_answer,
    to_json,
)


class Cancelled(BaseException):
    """Raised inside user code when nobody waits for its answer any more."""


class Context:
    """The second argument of a handler."""

    __slots__ = ("invocation_id", "attempt", "deadline_ms", "function_name", "function_version", "memory_limit_mib")

    def __init__(self, meta, load):
        self.invocation_id = meta["id"]
        self.attempt = meta["attempt"]
        self.deadline_ms = meta["deadline_ms"]
        self.function_name = load["function"]
        self.function_version = load["version"]
        self.memory_limit_mib = load["memory_mib"]

    def remaining_ms(self):
        """Milliseconds until the platform gives up on this invocation; never negative."""
        return max(0, int(self.deadline_ms - time() * 1000))


class Invocation(Origin):
    __slots__ = ("meta", "body", "cancelled", "begun", "thread", "task")

    def __init__(self, stream, payload):
        Origin.__init__(self, stream)
        meta_end = 4 + int.from_bytes(payload[:4], "big")
        self.meta = decode_json(payload[4:meta_end].decode())
        self.body = payload[meta_end:]
        self.cancelled = False
        self.begun = False
        self.thread = None
        self.task = None


class Server:
    """Base of the three servers. `start` begins an invocation whose body is complete, `stop` cancels a begun one."""

    def __init__(self, connection, output, handler, load):
        self.connection = connection
        self.output = output
        self.handler = handler
        self.load = load
        self.function = handler.function
        self.running = output.running
        self._incomplete = {}

    def start(self, invocation):
        raise NotImplementedError

    def stop(self, invocation):
        raise NotImplementedError

    def dispatch(self, kind, stream, payload):
        if kind == INVOKE:
            invocation = Invocation(stream, payload)
            if invocation.meta["more"]:
                invocation.body = bytearray(invocation.body)
                self._incomplete[stream] = invocation
            else:
                self.start(invocation)
        elif kind == BODY:
            invocation = self._incomplete.get(stream)
            if invocation is not None:
                invocation.body += payload
        elif kind == BODY_END:
            invocation = self._incomplete.pop(stream, None)
            if invocation is not None:
                invocation.body = bytes(invocation.body)
                self.start(invocation)
        elif kind == CANCEL:
            invocation = self._incomplete.pop(stream, None)
            if invocation is not None:
                invocation.cancelled = True
                self.fail(invocation, Cancelled())
                return
            invocation = self.running.get(stream)
            if invocation is not None:
                self.stop(invocation)
        elif kind == PING:
            self.connection.send(PONG, 0, payload)
        elif kind == HOOK:
            from .hooks import run_hook

            self.connection.send(HOOK_DONE, 0, to_json(run_hook(decode_json(payload.decode()))))
            self.output.flush()

    def begin(self, invocation):
        """Marks the invocation as the one whose code runs here, and calls the handler."""
        if invocation.cancelled:
            raise Cancelled
        self.running[invocation.stream] = invocation
        current.set(invocation)
        event = read_event(invocation.meta, invocation.body)
        invocation.body = None
        arguments = self.handler.arguments
        if arguments == 2:
            return self.function(event, Context(invocation.meta, self.load))
        return self.function(event) if arguments == 1 else self.function()

    def finish(self, invocation):
        """From here on nothing more can be said about the invocation; True for the first caller."""
        if invocation.done:
            return False
        self.output.flush(invocation)
        invocation.done = True
        self.running.pop(invocation.stream, None)
        return True

    def answer(self, invocation, value):
        """Answers with a value that is complete."""
        meta, body = self._head(invocation, value)
        content_type, body = encode(body)
        if meta is None:
            meta = content_type
        elif "content_type" not in meta:
            meta["content_type"] = content_type
        if invocation.cancelled:
            raise Cancelled
        self.output.flush(invocation)
        # Building the answer may fail, after which the invocation must still be there to be failed.
        self.connection.send_answer(invocation.stream, meta, body)
        self.finish(invocation)

    def stream_of(self, invocation, value):
        """(meta or None, iterator) when the value is a stream, or an HTTP answer whose body is one; else None."""
        if not hasattr(value, "__next__") and not hasattr(value, "__aiter__"):
            if not isinstance(value, dict) or invocation.meta["trigger"] != "http":
                return None
            body = value.get("body")
            if not hasattr(body, "__next__") and not hasattr(body, "__aiter__"):
                return None
        return self._head(invocation, value)

    def send_piece(self, invocation, meta, content_type, piece):
        """Sends one piece of a stream; returns the content type that the first piece has decided."""
        if content_type is None:
            content_type, body = encode_first_piece(piece)
            self._open_stream(invocation, meta, content_type)
        else:
            body = encode_piece(piece, content_type)
        if body:
            self.connection.send_chunk(invocation.stream, body)
        return content_type

    def end_stream(self, invocation, meta, content_type):
        if invocation.cancelled:
            raise Cancelled
        if content_type is None:
            self._open_stream(invocation, meta, TEXT)
        if self.finish(invocation):
            self.connection.send(END, invocation.stream)

    def fail(self, invocation, error):
        if invocation.cancelled:
            failure = {"reason": "cancelled", "type": "Cancelled", "message": "The invocation was cancelled."}
        elif isinstance(error, InvalidPayload):
            failure = {"reason": "invalid_payload", "type": "InvalidPayload", "message": str(error)[:1024]}
        else:
            from .failures import describe

            failure = describe(error)
            failure["reason"] = "error"
        if self.finish(invocation):
            self.connection.send(FAILED, invocation.stream, to_json(failure))

    def _head(self, invocation, value):
        http = read_http_answer(value) if invocation.meta["trigger"] == "http" else None
        if http is None:
            return None, value
        meta, content_type, body = http
        if content_type is not None:
            meta["content_type"] = content_type
        return meta, body

    def _open_stream(self, invocation, meta, content_type):
        if meta is None:
            meta = content_type
        elif "content_type" not in meta:
            meta["content_type"] = content_type
        self.connection.send_answer(invocation.stream, meta, b"", more=True)
