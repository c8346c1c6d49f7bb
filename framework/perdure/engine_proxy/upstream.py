"""Where the engine is: a Unix socket of this machine, or an address of an internal network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import httpcore

from perdure.errors import ConfigurationError
from perdure.ports import connectable

__all__ = ["Upstream"]

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
    async def connections(self) -> AsyncIterator[httpcore.AsyncConnectionPool]:
        """Open a pool of connections. It has no limit: each waiting call holds a connection.

        Raises:
            ConfigurationError: The socket's path is too long on this system, or its folder is missing.
        """
        with nullcontext() if self.socket is None else connectable(self.socket) as uds:
            async with httpcore.AsyncConnectionPool(
                max_connections=None, max_keepalive_connections=_IDLE, uds=uds
            ) as pool:
                yield pool
