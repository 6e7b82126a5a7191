"""Handlers that are `async`: any number at a time on one event loop."""

import os
import sys

from .server import Server

# asyncio takes longer to load than Python to start: only those who need it pay for it.


class AsyncServer(Server):
    def serve(self):
        import asyncio

        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._dispatch_all)
        self._loop.add_reader(self.connection.sock.fileno(), self._on_readable)
        try:
            self._loop.run_forever()
        except BaseException as error:
            from .failures import describe

            sys.stderr.write("%s\n" % describe(error).get("stack", repr(error)))
        # Code outside of any invocation has asked for the end of the process.
        os._exit(1)

    def start(self, invocation):
        self.running[invocation.stream] = invocation
        invocation.task = self._loop.create_task(self._run(invocation))

    def stop(self, invocation):
        invocation.cancelled = True
        # A task that has not begun would be dropped without an answer; it finds out by itself.
        if invocation.begun:
            invocation.task.cancel()

    def _on_readable(self):
        self.connection.read_available()
        self._dispatch_all()

    def _dispatch_all(self):
        frames = self.connection.frames
        while frames:
            self.dispatch(*frames.popleft())

    async def _run(self, invocation):
        invocation.begun = True
        try:
            value = self.begin(invocation)
            if hasattr(value, "__await__"):
                value = await value
            stream = self.stream_of(invocation, value)
            if stream is None:
                self.answer(invocation, value)
            else:
                await self._stream(invocation, *stream)
        except BaseException as error:
            self.fail(invocation, error)

    async def _stream(self, invocation, meta, pieces):
        content_type = None
        if hasattr(pieces, "__aiter__"):
            try:
                async for piece in pieces:
                    content_type = self.send_piece(invocation, meta, content_type, piece)
            finally:
                if hasattr(pieces, "aclose"):
                    await pieces.aclose()
        else:
            for piece in pieces:
                content_type = self.send_piece(invocation, meta, content_type, piece)
        self.end_stream(invocation, meta, content_type)


def run_coroutine(coroutine):
    """The outcome of a coroutine that a handler which does not look async has returned."""
    import asyncio

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


def run_generator(generator):
    """The pieces of an async generator, for a thread without an event loop."""
    import asyncio

    loop = asyncio.new_event_loop()
    iterator = generator.__aiter__()
    try:
        while True:
            try:
                piece = loop.run_until_complete(iterator.__anext__())
            except StopAsyncIteration:
                return
            yield piece
    finally:
        if hasattr(iterator, "aclose"):
            loop.run_until_complete(iterator.aclose())
        loop.close()
