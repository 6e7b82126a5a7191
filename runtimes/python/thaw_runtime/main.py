"""The life of the runtime: listen, load, serve."""

import os
import sys

from .connection import HELLO, LOAD, LOAD_FAILED, PING, PONG, READY, accept, listen


def main():
    listener = listen(os.environ["THAW_RUNTIME_SOCKET"])
    # From here on the worker can connect; what follows happens while it does.
    _leave_signals_to_the_kernel()
    from time import perf_counter

    from . import loader
    from .output import Output
    from .values import decode_json, to_json

    connection = accept(listener)
    version = "%d.%d.%d" % sys.version_info[:3]
    connection.send(HELLO, 0, to_json({"protocol": 1, "runtime": "python", "runtime_version": version}))
    kind, _, payload = connection.next_frame()
    while kind == PING:
        connection.send(PONG, 0, payload)
        kind, _, payload = connection.next_frame()
    if kind != LOAD:
        os._exit(1)
    start = perf_counter()
    load = decode_json(payload.decode())
    output = Output(connection)
    output.install()
    try:
        os.environ.update(load["env"])
        if load["contract"] != "handler":
            raise loader.HandlerInvalid("the Python runtime serves handlers only, not the contract %s" % load["contract"])
        runtime_dir = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        handler = loader.load(load["handler"], load["code_dir"], runtime_dir)
    except BaseException as error:
        from .failures import describe

        output.flush()
        connection.send(LOAD_FAILED, 0, to_json(describe(error)))
        while True:
            connection.next_frame()
    server = _server_class(handler, load["concurrency"])(connection, output, handler, load)
    output.flush()
    connection.send(READY, 0, to_json({"init_ms": round((perf_counter() - start) * 1000, 3)}))
    server.serve()


def _server_class(handler, concurrency):
    if handler.is_async:
        from .asynchronous import AsyncServer

        return AsyncServer
    if concurrency > 1:
        from .threads import ThreadServer

        return ThreadServer
    from .inline import InlineServer

    return InlineServer


def _leave_signals_to_the_kernel():
    """SIGTERM and SIGINT end the process at once, also when it is the first of its PID namespace, which has no defaults."""
    from _signal import SIG_DFL, SIGINT, SIGTERM, signal

    signal(SIGINT, SIG_DFL)
    if os.getpid() == 1:
        signal(SIGTERM, lambda number, _frame: os._exit(128 + number))
