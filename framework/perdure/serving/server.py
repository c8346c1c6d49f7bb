"""The HTTP server: granian inside this process, so that one process id is all of it."""

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

__all__ = ["HttpVersion", "Listener", "listening"]

HttpVersion = Literal["auto", "1", "2"]

_MODES: Final = {"auto": HTTPModes.auto, "1": HTTPModes.http1, "2": HTTPModes.http2}
_START = timedelta(seconds=10)
_STOP = timedelta(seconds=1)
_BACKLOG = 1024
# Beyond so many connections, granian accepts no more. Embedded, its default is 128. HTTP/1.1 with a connection for each
# attempt reaches that soon: 300 invocations of 3 steps then took 33 s in place of 7.
_CONNECTIONS = 16_384
_LATE = timedelta(milliseconds=500)
# Granian's logger goes through the root logger's handlers. It keeps to errors: each start warns of being embedded.
GRANIAN_LOGGING: Final[dict[str, Any]] = {
    "incremental": True,
    "handlers": {},
    "formatters": {},
    "loggers": {"_granian": {"propagate": True}},
}

log = get_logger(__name__)


class Listener:
    """A server that listens."""

    def __init__(self, host: str, port: int, task: asyncio.Task[None]) -> None:
        self.host = host
        self.port = port
        self._task = task

    @property
    def url(self) -> str:
        """Where it listens, as the engine is told at registration."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def failed(self) -> None:
        """Wait until the server ends without having been asked to.

        Raises:
            PerdureError: It did.
        """
        await asyncio.wait([self._task])
        raise PerdureError(f"the server at {self.url} ended by itself") from self._task.exception()


@asynccontextmanager
async def listening(
    app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, http: HttpVersion = "auto", setting: str = "port"
) -> AsyncIterator[Listener]:
    """Listen as long as the context lasts.

    Leaving the context stops the server, which waits up to a second for open requests: drain first.

    Args:
        app: Serves the requests.
        host: Address to bind.
        port: Port to bind; 0 takes a free one.
        http: ``auto`` speaks HTTP/1.1 and HTTP/2 (without TLS), ``1`` and ``2`` only the one.
        setting: Name of the setting that the port came from, for the error message.

    Yields:
        The listener, once it takes connections.

    Raises:
        ConfigurationError: The port is taken or can't be bound.
    """
    with reserve(host, port, setting) as holder:
        address, number = cast("tuple[str, int]", holder.getsockname()[:2])
        calls = _Calls(app)
        server = Server(
            calls,
            address=address,
            port=number,
            interface=Interfaces.ASGINL,
            http=_MODES[http],
            websockets=False,
            backlog=_BACKLOG,
            backpressure=_CONNECTIONS,
            log_level=LogLevels.error,
            log_dictconfig=GRANIAN_LOGGING,
        )
        task = asyncio.create_task(server.serve(), name=f"granian:{number}")
        try:
            await _connectable(address, number, task)
            yield Listener(address, number, task)
        finally:
            server.stop()  # type: ignore[no-untyped-call] # granian has no annotations there
            await asyncio.wait([task], timeout=_STOP.total_seconds())
            await calls.end()
            _, late = await asyncio.wait([task], timeout=_LATE.total_seconds())
            if late:
                log.warning("the server couldn't be stopped and is left behind", port=number)


class _Calls:
    """ASGI middleware that knows which calls are open, to end them before the event loop does.

    A stopping server may let go of a connection before the app has noticed. Granian's threads then come back to the
    event loop, or to an interpreter that is being taken down, which aborts the process.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open: set[asyncio.Task[Any]] = set()
        self._ending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
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
            await asyncio.wait(self._open, timeout=_LATE.total_seconds())
        if late := set(self._open):
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=_LATE.total_seconds())


async def _connectable(host: str, port: int, server: asyncio.Task[None]) -> None:
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _START.total_seconds()
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    while True:
        try:
            _, writer = await asyncio.open_connection(reachable, port)
        except OSError as error:
            if server.done() or loop.time() > give_up:
                cause = server.exception() if server.done() else None
                raise PerdureError(f"the server doesn't listen on {host}:{port}") from (cause or error)
            await asyncio.sleep(0.005)
        else:
            writer.close()
            return
