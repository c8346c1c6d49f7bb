"""HTTP server: granian embedded in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Literal, cast

from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

from perdure._runtime.asgi import ASGIApp, Receive, Scope, Send
from perdure._runtime.ports import reserve
from perdure.errors import PerdureError
from perdure.observability.logging import get_logger

HttpVersion = Literal["auto", "1", "2"]

_MODES: Final = {"auto": HTTPModes.auto, "1": HTTPModes.http1, "2": HTTPModes.http2}
_START_TIMEOUT = timedelta(seconds=10)
_STOP_TIMEOUT = timedelta(seconds=1)
_CALL_TIMEOUT = timedelta(milliseconds=500)
_BACKLOG = 1024
# Granian's limit of connections is 128 when embedded. HTTP/1.1 uses one connection per attempt: with the default, 300
# invocations of 3 steps took 33 s instead of 7 s.
_MAX_CONNECTIONS = 16_384
# Granian logs errors only, through the handlers of the root logger: each start would warn about embedding.
GRANIAN_LOGGING: Final[dict[str, Any]] = {
    "incremental": True,
    "handlers": {},
    "formatters": {},
    "loggers": {"_granian": {"propagate": True}},
}

log = get_logger(__name__)


class Listener:
    """Running server."""

    def __init__(self, host: str, port: int, task: asyncio.Task[None]) -> None:
        self.host = host
        self.port = port
        self._task = task

    @property
    def url(self) -> str:
        """The server's address, as registered at the engine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def failed(self) -> None:
        """Wait until the server fails.

        Raises:
            PerdureError: The server ended unexpectedly.
        """
        await asyncio.wait([self._task])
        raise PerdureError(f"the server at {self.url} ended unexpectedly") from self._task.exception()


@asynccontextmanager
async def listening(
    app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, http: HttpVersion = "auto", setting: str = "port"
) -> AsyncIterator[Listener]:
    """Run a server while the context is active.

    On exit, the server waits up to a second for open requests. Drain first.

    Args:
        app: The ASGI app.
        host: The address to bind.
        port: The port to bind; 0 for a free one.
        http: The HTTP versions without TLS: ``1``, ``2``, or ``auto`` for both.
        setting: The name of the port's setting, for error messages.

    Yields:
        The listener, after the server accepts connections.

    Raises:
        ConfigurationError: The port is taken or cannot be bound.
    """
    with reserve(host, port, setting) as holder:
        address, number = cast("tuple[str, int]", holder.getsockname()[:2])
        calls = _OpenCalls(app)
        server = Server(
            calls,
            address=address,
            port=number,
            interface=Interfaces.ASGINL,
            http=_MODES[http],
            websockets=False,
            backlog=_BACKLOG,
            backpressure=_MAX_CONNECTIONS,
            log_level=LogLevels.error,
            log_dictconfig=GRANIAN_LOGGING,
        )
        task = asyncio.create_task(server.serve(), name=f"granian:{number}")
        try:
            await _wait_until_connectable(address, number, task)
            yield Listener(address, number, task)
        finally:
            server.stop()  # type: ignore[no-untyped-call] # granian has no annotations there
            await asyncio.wait([task], timeout=_STOP_TIMEOUT.total_seconds())
            await calls.end()
            _, running = await asyncio.wait([task], timeout=_CALL_TIMEOUT.total_seconds())
            if running:
                log.warning("the server did not stop in time", port=number)


class _OpenCalls:
    """ASGI middleware that ends open calls before the event loop closes.

    A stopping server may drop a connection before the app has noticed. Granian's threads then return to a closed event
    loop or a finalised interpreter, which aborts the process.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open: set[asyncio.Task[Any]] = set()
        self._ending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._open.add(task)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._ending:
                raise
        finally:
            self._open.discard(task)

    async def end(self) -> None:
        """Wait for open calls, then cancel them."""
        self._ending = True
        if self._open:
            await asyncio.wait(self._open, timeout=_CALL_TIMEOUT.total_seconds())
        if remaining := set(self._open):
            for task in remaining:
                task.cancel()
            await asyncio.wait(remaining, timeout=_CALL_TIMEOUT.total_seconds())


async def _wait_until_connectable(host: str, port: int, server: asyncio.Task[None]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _START_TIMEOUT.total_seconds()
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    while True:
        try:
            _, writer = await asyncio.open_connection(reachable, port)
        except OSError as error:
            if server.done() or loop.time() > deadline:
                cause = server.exception() if server.done() else None
                raise PerdureError(f"the server does not listen on {host}:{port}") from (cause or error)

            await asyncio.sleep(0.005)
        else:
            writer.close()
            return
