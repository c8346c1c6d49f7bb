"""Connections to the engine over a Unix socket or TCP."""

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

_UNIX: Final = "unix:"
_MAX_IDLE: Final = 256


@dataclass(frozen=True)
class Upstream:
    """Address of one of the engine's listeners.

    Args:
        host: The host name or address; ``localhost`` for a socket.
        port: The TCP port; None for a socket.
        socket: The Unix socket; None for TCP.
    """

    host: str
    port: int | None = None
    socket: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address in a text: ``unix:/path/to/ingress.sock`` or ``http://host:port``.

        Raises:
            ConfigurationError: The text is malformed.
        """
        if text.startswith(_UNIX) and len(text) > len(_UNIX):
            return cls("localhost", socket=Path(text.removeprefix(_UNIX)))
        parts = urlsplit(text)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "http" or not parts.hostname or port is None or parts.path.strip("/") or parts.query:
            raise ConfigurationError(f"'{text}' is not an address: use unix:/path/to/socket or http://host:port")
        return cls(parts.hostname, port)

    def __str__(self) -> str:
        return f"{_UNIX}{self.socket}" if self.socket is not None else f"http://{self.host}:{self.port}"

    def url(self, target: bytes) -> httpcore.URL:
        """Return the URL of a request with this path and query."""
        return httpcore.URL(scheme=b"http", host=self.host.encode(), port=self.port, target=target)

    @asynccontextmanager
    async def connections(self) -> AsyncIterator[Connections]:
        """Open a connection pool for the duration of the context.

        Raises:
            ConfigurationError: The path of the socket is too long for this system, or its folder is missing.
        """
        with nullcontext() if self.socket is None else connectable(self.socket) as uds:
            connections = Connections(self, uds)
            try:
                yield connections
            finally:
                await connections.close()


class Connections:
    """Unlimited connection pool for one listener.

    Each waiting call uses a connection. `httpcore.AsyncConnectionPool` scans all connections for each request, which is
    slow with a thousand waiting calls.

    Args:
        upstream: The address of the listener.
        uds: A short path of its socket; None for TCP.
    """

    def __init__(self, upstream: Upstream, uds: str | None) -> None:
        self._origin = upstream.url(b"/").origin
        self._uds = uds
        self._idle: list[httpcore.AsyncHTTPConnection] = []

    async def send(self, request: httpcore.Request) -> tuple[httpcore.Response, httpcore.AsyncHTTPConnection]:
        """Send a request, and return the response without its body, and the connection for `release`.

        Raises:
            httpcore.ConnectError: There is no connection; nothing was sent.
            httpcore.NetworkError: The connection broke.
            httpcore.ProtocolError: A message violates HTTP.
        """
        connection = await self._acquire()
        try:
            return await connection.handle_async_request(request), connection
        except BaseException:
            await connection.aclose()
            raise

    async def release(self, response: httpcore.Response, connection: httpcore.AsyncHTTPConnection) -> None:
        """Return a connection to the pool, or close it if the response was not read completely."""
        await response.aclose()
        if connection.is_idle() and len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            await connection.aclose()

    async def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            await self._idle.pop().aclose()

    async def _acquire(self) -> httpcore.AsyncHTTPConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_expired():
                return connection
            await connection.aclose()
        return httpcore.AsyncHTTPConnection(self._origin, uds=self._uds)
