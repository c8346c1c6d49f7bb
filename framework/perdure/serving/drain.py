"""Draining: attempts end in an orderly way before the server stops.

Closing connections with open attempts would make the engine retry them, and repeat side effects whose results it has
not received. So attempts end while the server still runs:

1. New attempts get 503. The engine retries them later.
2. Most attempts end within the settle time. For the others, the end of the engine's stream is simulated: the SDK
   finishes running side effects, sends their results and suspends. The end of the response is held back until the
   engine has ended its stream, and so has read all results.
3. Attempts that are open after the grace time are abandoned: cancelled, without further output. The engine retries
   them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta

from perdure._runtime.asgi import ASGIApp, Message, Receive, Scope, Send, is_final_body

_SETTLE_TIME = timedelta(milliseconds=500)
_CANCEL_TIMEOUT = timedelta(seconds=1)


class Drain:
    """ASGI middleware that counts the open attempts of the SDK's app and can end them.

    Args:
        app: The app that serves attempts.
        settle: The time that attempts have to end by themselves.
    """

    def __init__(self, app: ASGIApp, *, settle: timedelta = _SETTLE_TIME) -> None:
        self._app = app
        self._settle = settle
        self._open: set[_Attempt] = set()
        self._draining = False
        self._idle: asyncio.Event | None = None

    @property
    def draining(self) -> bool:
        """Whether a drain has begun, so that new attempts are refused."""
        return self._draining

    @property
    def open_attempts(self) -> int:
        """The number of open attempts."""
        return len(self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse an attempt."""
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
        """End all open attempts.

        Args:
            grace: The time limit of running side effects. Attempts that exceed it are abandoned.
            hurry: An event that ends the grace time.

        Returns:
            The abandoned attempts, as ``Service/handler``.
        """
        self._draining = True
        self._idle = asyncio.Event()
        if not self._open:
            return []
        hurry = hurry or asyncio.Event()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace.total_seconds()
        await _first_of(self._idle, hurry, seconds=min(self._settle.total_seconds(), grace.total_seconds()))
        for attempt in self._open:
            attempt.end_input()
        await _first_of(self._idle, hurry, seconds=deadline - loop.time())
        abandoned = [attempt.target for attempt in self._open]
        for attempt in list(self._open):
            attempt.abandon()
        if abandoned:
            await _first_of(self._idle, seconds=_CANCEL_TIMEOUT.total_seconds())
        return sorted(abandoned)


class _Attempt:
    """Streams of an attempt whose input can be ended from this side.

    A task reads ahead, so that the input can end while a read is pending, and a cancelled read loses no event.
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
        """Simulate the end of the engine's stream unless it has ended."""
        if not self._request_ended.is_set():
            self._deliver({"type": "http.request", "body": b"", "more_body": False})
            self._input_ended = True

    def abandon(self) -> None:
        """Cancel the attempt. Its further output is dropped, since the engine would take it for a result."""
        self._abandoned = True
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Stop reading after the end of the attempt."""
        # A reference to the cancelled task would keep its traceback, which refers to this attempt: a cycle that only
        # the garbage collector frees.
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
    # The headers are sent with the first chunk, and the engine ends its stream after it has received them.
    await send({"type": "http.response.body", "body": b"this process is stopping\n", "more_body": True})
    while True:
        event = await receive()
        if event["type"] == "http.disconnect" or not event.get("more_body", False):
            break
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _first_of(*events: asyncio.Event, seconds: float) -> None:
    """Wait until one of the events is set or the time is over."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
