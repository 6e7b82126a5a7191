"""Async handlers. Imported when the first one is met, because asyncio takes longer to import than all of the rest."""

import asyncio
import sys


class EventLoop:
    """One event loop for all async code: on the main thread with concurrency 1, else on a thread of its own."""

    def __init__(self, runtime):
        self._runtime = runtime
        self._loop = asyncio.new_event_loop()
        if runtime.inline:
            asyncio.set_event_loop(self._loop)
            self.watch(runtime.conn)
        else:
            from threading import Thread

            Thread(target=self._run_forever, name="event-loop", daemon=True).start()

    def watch(self, conn):
        # Looked at only while the loop runs, that is, during an async invocation: so its cancel is heard.
        self._loop.add_reader(conn.fileno(), self._runtime.poll)

    def unwatch(self, conn):
        self._loop.remove_reader(conn.fileno())

    def run(self, invocation, value=None, head=None):
        """Calls the handler, or awaits what it returned (`value`), and answers. With concurrency 1: returns after that."""
        if not self._runtime.inline:
            self._loop.call_soon_threadsafe(self._start, invocation, value, head)
            return
        task = self._start(invocation, value, head)
        try:
            self._loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            # SystemExit of another task of the handler's stops the loop.
            self._runtime.fail(invocation, error)
            task.cancel()

    def cancel(self, invocation):
        if self._runtime.inline:
            self._cancel(invocation)
        else:
            self._loop.call_soon_threadsafe(self._cancel, invocation)

    def wait(self, awaitable):
        """Runs an awaitable to its end from outside the loop."""

        async def run():
            return await awaitable

        if self._runtime.inline:
            return self._loop.run_until_complete(run())
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _run_forever(self):
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
            except BaseException:
                # SystemExit of one task must not take the loop from all others.
                sys.excepthook(*sys.exc_info())

    def _start(self, invocation, value, head):
        task = self._loop.create_task(self._drive(invocation, value, head))
        invocation.task = task
        # A task that is cancelled before its first step never enters its own code.
        task.add_done_callback(lambda _: invocation.done or self._runtime.fail(invocation, asyncio.CancelledError()))
        return task

    @staticmethod
    def _cancel(invocation):
        if invocation.task is not None:
            invocation.task.cancel()

    async def _drive(self, invocation, value, head):
        runtime = self._runtime
        runtime.variable.set(invocation)
        try:
            if value is None:
                value = runtime.call(invocation)
                if value is invocation:
                    return
            if hasattr(type(value), "__await__"):
                value = await value
            if head is None:
                head, value = runtime.split(invocation, value)
            kind = type(value)
            if hasattr(kind, "__anext__"):
                await self._answer_pieces(invocation, head, value)
            elif hasattr(kind, "__next__"):
                runtime.answer_pieces(invocation, head, value)
            else:
                runtime.answer_whole(invocation, head, value)
        except BaseException as error:
            runtime.fail(invocation, error)

    async def _answer_pieces(self, invocation, head, pieces):
        from _thaw_calls import AnswerStream

        stream = AnswerStream(self._runtime, invocation, head)
        try:
            async for piece in pieces:
                stream.write(piece)
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        stream.end()
