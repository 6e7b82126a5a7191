"""The runtime of Python functions: one connection to the worker, frames of docs/runtime-protocol.md.

With concurrency 1 everything happens on the main thread: read an invoke, run the handler, write the result. Otherwise
the main thread only reads; handlers run on threads or, when they are async, on one event loop (_thaw_async.py).

Only what every start needs is imported at the top, and C modules rather than the packages around them.
"""

import os
import sys
from _contextvars import ContextVar, copy_context
from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_STREAM
from _socket import socket as Socket
from _thread import RLock, allocate_lock, start_new_thread
from time import perf_counter

from _thaw_calls import AnswerStream, Context, Invocation, Threads
from _thaw_code import import_module, reseed
from _thaw_frames import (
    LOAD,
    INVOKE,
    BODY,
    BODY_END,
    CANCEL,
    HOOK,
    PING,
    HELLO,
    READY,
    LOAD_FAILED,
    RESULT,
    CHUNK,
    END,
    FAILED,
    LOG,
    HOOK_DONE,
    PONG,
    HEADER,
    META_SIZE,
    WHOLE,
    Reader,
    meta_bytes,
)
from _thaw_logs import MAX_HELD_LOG_BYTES, LogText, whole_characters
from _thaw_values import (
    PIECE_BYTES,
    encode_answer,
    encode_json,
    event_of,
    failure_of,
    http_answer,
    parse_json,
    positional_arguments,
    runtime_version,
)

CO_COROUTINE, CO_ASYNC_GENERATOR = 0x80, 0x200


def apply_environment(env, files):
    """Sets variables, and puts secrets that are files where only the user of the function reads them."""
    os.environ.update(env)
    if "TZ" in env:
        from time import tzset

        tzset()
    if not files:
        return
    folder = os.environ["THAW_SECRETS_DIR"]
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name, value in files.items():
        handle = os.open(os.path.join(folder, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(value)


class Runtime:
    def __init__(self, path):
        self.path = path
        self.listener = listen(path)
        self.conn = None
        self.backlog = []
        self.send_lock = allocate_lock()
        # Reentrant: a destructor or signal handler may print while a line is being sent.
        self.log_lock = RLock()
        self.loop_lock = allocate_lock()
        self.current = None
        self.variable = ContextVar("thaw_invocation", default=None)
        self.stray = [b"", b"", b""]
        self.invocations = {}
        self.uploads = {}
        self.message = None
        self.handler = None
        self.arguments = 2
        self.is_async = False
        self.inline = True
        self.threads = None
        self.event_loop = None

    # Frames out

    def send(self, data):
        try:
            with self.send_lock:
                # None: a thread prints between two connections. Nobody would read it.
                if self.conn is not None:
                    self.conn.sendall(data)
        except OSError:
            if not self.reader.may_end:
                os._exit(0)

    def send_frame(self, kind, stream, payload=b""):
        self.send(HEADER.pack(len(payload) + 5, kind, stream) + payload)

    # Connections

    def accept(self):
        """Takes the one connection that is served, and greets it."""
        fd, _ = self.listener._accept()
        self.stop_listening()
        conn = Socket(fileno=fd)
        self.reader = Reader(conn)
        self.conn = conn
        if self.inline and self.event_loop is not None:
            self.event_loop.watch(conn)
        start_new_thread(watch, (conn.fileno(), self.reader))
        self.send_frame(
            HELLO, 0, encode_json({"protocol": 1, "runtime": "python", "runtime_version": runtime_version()})
        )

    def wait_for_successor(self):
        """The worker has taken its leave for a snapshot; this process, or copies of it, go on with another one."""
        if self.inline and self.event_loop is not None:
            self.event_loop.unwatch(self.conn)
        conn, self.conn = self.conn, None
        conn.close()
        self.accept()

    # Frames in

    def serve(self):
        self.accept()
        while True:
            frame = self.backlog.pop(0) if self.backlog else self.reader.next()
            if frame is None:
                self.wait_for_successor()
                continue
            kind, stream, payload = frame
            if kind == INVOKE:
                size = META_SIZE.unpack_from(payload)[0]
                meta = parse_json(payload[4 : 4 + size])
                invocation = Invocation(stream, meta, payload[4 + size :])
                self.invocations[stream] = invocation
                if meta["more"]:
                    self.uploads[stream] = bytearray(invocation.body)
                else:
                    self.start(invocation)
            else:
                self.receive(kind, stream, payload)

    def receive(self, kind, stream, payload):
        if kind == BODY:
            upload = self.uploads.get(stream)
            if upload is not None:
                upload += payload
        elif kind == BODY_END:
            upload = self.uploads.pop(stream, None)
            if upload is not None:
                invocation = self.invocations[stream]
                invocation.body = bytes(upload)
                self.start(invocation)
        elif kind == CANCEL:
            self.cancel(stream)
        elif kind == PING:
            self.send_frame(PONG, 0, payload)
        elif kind == HOOK:
            self.run_hooks(parse_json(payload))
        elif kind == LOAD:
            self.load(parse_json(payload))

    def poll(self):
        """Takes what has arrived while a handler has the main thread: cancels and pings now, the rest afterwards."""
        while True:
            frame = self.reader.next(MSG_DONTWAIT)
            if frame is None:
                return
            if frame[0] == CANCEL or frame[0] == PING:
                self.receive(*frame)
            else:
                self.backlog.append(frame)

    def cancel(self, stream):
        invocation = self.invocations.get(stream)
        if invocation is None:
            return
        invocation.cancelled = True
        if self.uploads.pop(stream, None) is not None:
            self.fail(invocation, None)
        elif self.event_loop is not None:
            self.event_loop.cancel(invocation)

    # Loading

    def load(self, message):
        started = perf_counter()
        self.message = message
        self.inline = message["concurrency"] <= 1
        try:
            self.find_handler(message)
        except BaseException as error:
            self.flush_held(0, self.stray)
            self.send_frame(LOAD_FAILED, 0, encode_json(failure_of(error)))
            return
        self.flush_held(0, self.stray)
        self.send_frame(READY, 0, encode_json({"init_ms": round((perf_counter() - started) * 1000, 3)}))

    def find_handler(self, message):
        code_dir = message["code_dir"]
        apply_environment(message["env"], message.pop("secret_files", None))
        runtime_dir = os.path.abspath(sys.path.pop(0))
        os.chdir(code_dir)
        sys.path[:0] = [code_dir, os.path.join(code_dir, ".thaw", "python")]
        sys.path.append(runtime_dir)
        path, _, name = message["handler"].rpartition(".")
        if path.startswith("./"):
            path = path[2:]
        module_name = path.replace("/", ".")
        if module_name == "" or name == "":
            raise ValueError("the handler %r is not of the form file.function" % message["handler"])
        module = import_module(module_name, code_dir)
        handler = getattr(module, name)
        if not callable(handler):
            raise TypeError("%s in %s is not callable: it is %s" % (name, module_name, type(handler).__name__))
        self.arguments = positional_arguments(handler)
        code = getattr(handler, "__code__", None)
        self.is_async = code is not None and code.co_flags & (CO_COROUTINE | CO_ASYNC_GENERATOR) != 0
        self.handler = handler
        if self.is_async:
            self.loop()
        if not self.inline:
            self.threads = Threads(self.run_in_thread, message["concurrency"])

    def loop(self):
        # Two threads may meet their first awaitable at once.
        with self.loop_lock:
            if self.event_loop is None:
                from _thaw_async import EventLoop

                self.event_loop = EventLoop(self)
            return self.event_loop

    # Running

    def start(self, invocation):
        if self.inline:
            self.current = invocation
            if self.is_async:
                self.event_loop.run(invocation)
            else:
                self.run(invocation)
            self.current = None
        elif self.is_async:
            self.event_loop.run(invocation)
        else:
            self.threads.put(invocation)

    def run_in_thread(self, invocation):
        copy_context().run(self.run_with_variable, invocation)

    def run_with_variable(self, invocation):
        self.variable.set(invocation)
        self.run(invocation)

    def run(self, invocation):
        try:
            value = self.call(invocation)
            if value is not invocation:
                kind = type(value)
                if hasattr(kind, "__await__") or hasattr(kind, "__anext__"):
                    self.loop().run(invocation, value)
                else:
                    self.answer(invocation, value)
        except BaseException as error:
            self.fail(invocation, error)

    def call(self, invocation):
        """What the handler returns; the invocation itself when its payload was malformed, which is answered here."""
        try:
            event = event_of(invocation.meta, invocation.body)
        except (ValueError, RecursionError) as error:
            self.fail(invocation, error, "invalid_payload")
            return invocation
        invocation.body = None
        if self.arguments == 2:
            return self.handler(event, Context(invocation.meta, self.message))
        if self.arguments == 1:
            return self.handler(event)
        return self.handler()

    # Answering

    def split(self, invocation, value):
        """(head, body): what an HTTP answer says besides its body."""
        if invocation.meta["trigger"] == "http":
            return http_answer(value)
        return None, value

    def answer(self, invocation, value):
        head, value = self.split(invocation, value)
        kind = type(value)
        if hasattr(kind, "__anext__"):
            self.loop().run(invocation, value, head)
        elif hasattr(kind, "__next__"):
            self.answer_pieces(invocation, head, value)
        else:
            self.answer_whole(invocation, head, value)

    def answer_pieces(self, invocation, head, pieces):
        stream = AnswerStream(self, invocation, head)
        try:
            for piece in pieces:
                stream.write(piece)
                if self.inline:
                    self.poll()
                if invocation.cancelled:
                    break
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        stream.end()

    def answer_whole(self, invocation, head, value):
        kind, body = encode_answer(value)
        if not self.finish(invocation):
            return
        stream = invocation.stream
        more = len(body) > PIECE_BYTES
        if head or more:
            meta = meta_bytes(dict({"content_type": kind, "more": more}, **(head or {})))
        else:
            meta = WHOLE[kind]
        if not more:
            self.send(HEADER.pack(5 + len(meta) + len(body), RESULT, stream) + meta + body)
            return
        self.send_frame(RESULT, stream, meta + body[:PIECE_BYTES])
        view = memoryview(body)
        for offset in range(PIECE_BYTES, len(body), PIECE_BYTES):
            self.send_frame(CHUNK, stream, bytes(view[offset : offset + PIECE_BYTES]))
        self.send_frame(END, stream)

    def fail(self, invocation, error, reason="error"):
        if invocation.cancelled:
            failure = {"type": "Cancelled", "message": "nobody waits for the answer any more"}
            reason = "cancelled"
        else:
            failure = failure_of(error)
        failure["reason"] = reason
        if self.close(invocation):
            self.send_frame(FAILED, invocation.stream, encode_json(failure))

    def finish(self, invocation):
        """Before the last word on an invocation: True when that may be a result. Ends it as cancelled otherwise."""
        if invocation.cancelled:
            self.fail(invocation, None)
            return False
        return self.close(invocation)

    def close(self, invocation):
        """Output up to here belongs to the invocation, later output to the instance. False: it was closed before."""
        with self.log_lock:
            if invocation.done:
                return False
            if invocation.held is not None:
                self.flush_held(invocation.stream, invocation.held)
            invocation.done = True
        self.invocations.pop(invocation.stream, None)
        return True

    # Logs

    def log(self, source, data):
        with self.log_lock:
            invocation = self.current if self.inline else self.variable.get()
            if invocation is None or invocation.done:
                stream, held = 0, self.stray
            else:
                stream, held = invocation.stream, invocation.held
                if held is None:
                    held = invocation.held = [b"", b"", b""]
            cut = data.rfind(b"\n") + 1
            if cut:
                self.send_log(stream, source, held[source] + data[:cut])
                held[source] = data[cut:]
            else:
                held[source] += data
            if len(held[source]) >= MAX_HELD_LOG_BYTES:
                whole = whole_characters(held[source])
                self.send_log(stream, source, held[source][:whole])
                held[source] = held[source][whole:]

    def flush_log(self, source):
        with self.log_lock:
            invocation = self.current if self.inline else self.variable.get()
            if invocation is None or invocation.done:
                stream, held = 0, self.stray
            else:
                stream, held = invocation.stream, invocation.held
            if held is not None and held[source]:
                self.send_log(stream, source, held[source])
                held[source] = b""

    def flush_held(self, stream, held):
        for source in (1, 2):
            if held[source]:
                self.send_log(stream, source, held[source])
                held[source] = b""

    def send_log(self, stream, source, data):
        while len(data) > PIECE_BYTES:
            whole = whole_characters(data[:PIECE_BYTES])
            self.send_frame(LOG, stream, bytes((source,)) + data[:whole])
            data = data[whole:]
        self.send_frame(LOG, stream, bytes((source,)) + data)

    # Hooks

    def run_hooks(self, message):
        name = message["hook"]
        done = {"hook": name}
        try:
            if name == "after_restore":
                self.wake(message)
            for function in getattr(sys.modules.get("thaw"), "_hooks", {}).get(name, ()):
                value = function()
                if hasattr(type(value), "__await__"):
                    self.loop().wait(value)
            if name == "before_snapshot":
                self.prepare_snapshot()
        except BaseException as error:
            done["error"] = failure_of(error)
        self.flush_held(0, self.stray)
        self.send_frame(HOOK_DONE, 0, encode_json(done))

    def prepare_snapshot(self):
        """Listens for the worker of the copies."""
        # Here, so that no copy has to read them from disk.
        import binascii  # noqa: F401
        import gc

        # What nobody needs is not to be part of every copy.
        gc.collect()
        self.stop_listening()
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.listener = listen(self.path)
        self.reader.may_end = True

    def stop_listening(self):
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def wake(self, message):
        from binascii import a2b_base64

        # Where the worker went on with the connection that it had.
        self.stop_listening()
        self.reader.may_end = False
        reseed(a2b_base64(message.get("entropy", "")))
        apply_environment(message.get("env", {}), message.get("files"))


def listen(path):
    listener = Socket(AF_UNIX, SOCK_STREAM)
    # Under its final name at once: a snapshot loses the name of a socket that was renamed.
    listener.bind(path)
    listener.listen(1)
    return listener


def watch(fd, reader):
    """Ends the process when the connection ends while a handler has the main thread."""
    import select

    poll = select.poll()
    poll.register(fd, getattr(select, "POLLRDHUP", 0))
    poll.poll()
    if not reader.may_end:
        os._exit(0)


def main():
    from _signal import SIGTERM, signal

    # As the first process of a container, one that sets no handler would not hear of it.
    signal(SIGTERM, lambda *_: os._exit(0))
    runtime = Runtime(os.environ["THAW_RUNTIME_SOCKET"])
    stdout, stderr = LogText(runtime, 1), LogText(runtime, 2)

    def leave_to_parent():
        # Two processes must not write to one connection; a child's output goes where fd 1 and 2 lead.
        for own in (runtime.conn, runtime.listener):
            if own is not None:
                own.close()
        if sys.stdout is stdout:
            sys.stdout = sys.__stdout__
        if sys.stderr is stderr:
            sys.stderr = sys.__stderr__

    os.register_at_fork(after_in_child=leave_to_parent)
    sys.stdout = stdout
    sys.stderr = stderr
    try:
        runtime.serve()
    except KeyboardInterrupt:
        os._exit(130)
