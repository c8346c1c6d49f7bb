"""Stop without breaking what runs: refuse new attempts, let running steps be stored, suspend whoever waits.

A server that just stops closes connections with open attempts on them. The engine retries those, and a step whose
result hadn't reached it yet runs a second time. So attempts are brought to an end first, while the server still serves:

1. New attempts get 503; the engine retries them later, elsewhere or here after the restart.
2. After a moment, in which most attempts end by themselves, the others are told that the engine's side of the stream
   has ended. The SDK then finishes the steps that run, sends their results, and suspends; a handler that waits suspends
   at once. The response's end is held back until the engine has really ended its side: then it has read all results.
3. What is still open after the grace time is abandoned: cancelled, its output thrown away. The engine retries it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta

from perdure._runtime.asgi import ASGIApp, Message, Receive, Scope, Send, is_final_body

__all__ = ["Drain"]

_SETTLE = timedelta(milliseconds=500)
_CANCEL = timedelta(seconds=1)


class Drain:
    """ASGI middleware around the SDK's app that counts open attempts and can bring them to an end.

    Args:
        app: Serves the attempts.
        settle: How long attempts may go on as usual once a drain has begun.
    """

    def __init__(self, app: ASGIApp, *, settle: timedelta = _SETTLE) -> None:
        self._app = app
        self._settle = settle
        self._open: set[_Attempt] = set()
        self._draining = False
        self._idle: asyncio.Event | None = None

    @property
    def draining(self) -> bool:
        """True once a drain has begun; no attempt is taken any more."""
        return self._draining

    @property
    def open_attempts(self) -> int:
        """How many attempts run or wait now."""
        return len(self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one attempt, or refuse it."""
        if self._draining:
            await _refuse(receive, send)
            return
        attempt = _Attempt(scope["path"], receive, send)
        self._open.add(attempt)
        try:
            await self._app(scope, attempt.receive, attempt.send)
        finally:
            self._open.discard(attempt)
            attempt.close()
            if self._idle is not None and not self._open:
                self._idle.set()

    async def drain(self, grace: timedelta, hurry: asyncio.Event | None = None) -> list[str]:
        """Bring all open attempts to an end.

        Args:
            grace: How long running steps may take; whoever is left after it is abandoned.
            hurry: Ends the grace time at once when it's set.

        Returns:
            The abandoned attempts, as ``Service/handler``. Empty when nothing that ran was lost.
        """
        self._draining = True
        self._idle = asyncio.Event()
        if not self._open:
            return []
        hurry = hurry or asyncio.Event()
        loop = asyncio.get_running_loop()
        give_up = loop.time() + grace.total_seconds()
        await _first_of(self._idle, hurry, seconds=min(self._settle.total_seconds(), grace.total_seconds()))
        for attempt in self._open:
            attempt.end_input()
        await _first_of(self._idle, hurry, seconds=give_up - loop.time())
        abandoned = [attempt.target for attempt in self._open]
        for attempt in list(self._open):
            attempt.abandon()
        if abandoned:
            await _first_of(self._idle, seconds=_CANCEL.total_seconds())
        return sorted(abandoned)


class _Attempt:
    """One attempt's streams, with a way to end its input from this side.

    Input is read ahead by a task of its own, so that the end can be announced while a read is pending, and no event of
    the server is ever lost to a cancelled read.
    """

    def __init__(self, path: str, receive: Receive, send: Send) -> None:
        self.target = "/".join(path.rsplit("/", 2)[-2:])
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._events: deque[Message] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._request_ended = asyncio.Event()
        self._input_ended = False
        self._abandoned = False
        self._reader: asyncio.Task[None] | None = asyncio.create_task(self._read())

    async def receive(self) -> Message:
        """ASGI ``receive`` for the app."""
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()

    async def send(self, message: Message) -> None:
        """ASGI ``send`` for the app."""
        if self._abandoned:
            return
        if self._input_ended and is_final_body(message):
            if message.get("body"):
                await self._send({**message, "more_body": True})
            await self._request_ended.wait()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def end_input(self) -> None:
        """Tell the app that the engine's side of the stream has ended, unless it really has."""
        if not self._request_ended.is_set():
            self._deliver({"type": "http.request", "body": b"", "more_body": False})
            self._input_ended = True

    def abandon(self) -> None:
        """Cancel the app's work on this attempt. What it still says is not sent: it would look like an outcome."""
        self._abandoned = True
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Stop reading. The app is done with the attempt."""
        # Who keeps a cancelled task keeps its traceback, and in it themselves: all that an attempt leaves behind would
        # wait for the collector of cycles, and the next one begin in memory that no cache knows.
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    async def _read(self) -> None:
        while True:
            event = await self._receive()
            disconnected = event["type"] == "http.disconnect"
            if disconnected or not event.get("more_body", False):
                self._request_ended.set()
            if not self._input_ended or disconnected:
                self._deliver(event)
            if disconnected:
                return

    def _deliver(self, event: Message) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def _refuse(receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/plain"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    # The headers leave with a first chunk; the engine ends its side when it has seen them.
    await send({"type": "http.response.body", "body": b"this process is stopping\n", "more_body": True})
    while True:
        event = await receive()
        if event["type"] == "http.disconnect" or not event.get("more_body", False):
            break
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _first_of(*events: asyncio.Event, seconds: float) -> None:
    """Wait until one of the events is set, at most so long."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
