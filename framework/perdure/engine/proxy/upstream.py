"""Where the engine is: a Unix socket of this machine, or an address of an internal network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import httpcore

from perdure._runtime.ports import connectable
from perdure.errors import ConfigurationError

__all__ = ["Connections", "Upstream"]

_UNIX: Final = "unix:"
_IDLE: Final = 256


@dataclass(frozen=True)
class Upstream:
    """One of the engine's listeners.

    Args:
        host: Host name or address; ``localhost`` for a socket.
        port: TCP port; None for a socket.
        socket: The Unix socket; None for TCP.
    """

    host: str
    port: int | None = None
    socket: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the listener that a text names.

        Args:
            text: ``unix:/path/to/ingress.sock`` or ``http://host:port``.

        Raises:
            ConfigurationError: It names none.
        """
        if text.startswith(_UNIX) and len(text) > len(_UNIX):
            return cls("localhost", socket=Path(text.removeprefix(_UNIX)))
        parts = urlsplit(text)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "http" or not parts.hostname or port is None or parts.path.strip("/") or parts.query:
            raise ConfigurationError(f"'{text}' names no listener: write unix:/path/to/socket or http://host:port")
        return cls(parts.hostname, port)

    def __str__(self) -> str:
        return f"{_UNIX}{self.socket}" if self.socket is not None else f"http://{self.host}:{self.port}"

    def url(self, target: bytes) -> httpcore.URL:
        """Return the URL of a request.

        Args:
            target: Path and query, as they are sent.
        """
        return httpcore.URL(scheme=b"http", host=self.host.encode(), port=self.port, target=target)

    @asynccontextmanager
    async def connections(self) -> AsyncIterator[Connections]:
        """Open a place for connections to it; they are closed when the context is left.

        Raises:
            ConfigurationError: The socket's path is too long on this system, or its folder is missing.
        """
        with nullcontext() if self.socket is None else connectable(self.socket) as uds:
            connections = Connections(self, uds)
            try:
                yield connections
            finally:
                await connections.close()


class Connections:
    """Connections to one listener, each for one request at a time, kept for the next.

    There is no limit, since each waiting call holds one. `httpcore.AsyncConnectionPool` looks at all of its connections
    for each request, which a thousand waiting calls would make slow.

    Args:
        upstream: The listener.
        uds: A path of its socket that is short enough; None for TCP.
    """

    def __init__(self, upstream: Upstream, uds: str | None) -> None:
        self._origin = upstream.url(b"/").origin
        self._uds = uds
        self._idle: list[httpcore.AsyncHTTPConnection] = []

    async def send(self, request: httpcore.Request) -> tuple[httpcore.Response, httpcore.AsyncHTTPConnection]:
        """Send a request, and return the head of its answer with the connection; hand that to `release`.

        Args:
            request: The request.

        Raises:
            httpcore.ConnectError: There is no connection; nothing was sent.
            httpcore.NetworkError: The connection broke.
            httpcore.ProtocolError: One side does not keep to HTTP.
        """
        connection = await self._take()
        try:
            return await connection.handle_async_request(request), connection
        except BaseException:
            await connection.aclose()
            raise

    async def release(self, response: httpcore.Response, connection: httpcore.AsyncHTTPConnection) -> None:
        """Keep a connection for the next request, or close it when its answer was not read to the end.

        Args:
            response: What `send` returned.
            connection: What `send` returned.
        """
        await response.aclose()
        if connection.is_idle() and len(self._idle) < _IDLE:
            self._idle.append(connection)
        else:
            await connection.aclose()

    async def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            await self._idle.pop().aclose()

    async def _take(self) -> httpcore.AsyncHTTPConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_expired():  # the engine has closed it, or it broke
                return connection
            await connection.aclose()
        return httpcore.AsyncHTTPConnection(self._origin, uds=self._uds)
