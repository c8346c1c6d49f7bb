"""Where the engine is: a Unix socket of this machine, or an address of an internal network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import httpcore

from perdure.errors import ConfigurationError

__all__ = ["Upstream", "connectable_path"]

_UNIX: Final = "unix:"
# Linux takes 107 bytes, macOS 103.
_LONGEST_PATH: Final = 103
_OPEN_FILES: Final = Path("/proc/self/fd")
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

    def pool(self) -> httpcore.AsyncConnectionPool:
        """Return a pool of connections. It has no limit: each waiting call holds a connection.

        Raises:
            ConfigurationError: The socket's path is too long on this system.
        """
        uds = None if self.socket is None else connectable_path(self.socket)
        return httpcore.AsyncConnectionPool(max_connections=None, max_keepalive_connections=_IDLE, uds=uds)


def connectable_path(socket: Path) -> str:
    """Return a path of a Unix socket that is short enough to connect to.

    A system takes about 100 bytes. Linux reaches a socket in a longer path through an open file of its folder. That
    file stays open as long as the process lives.

    Args:
        socket: The socket. Its folder exists.

    Raises:
        ConfigurationError: The path is too long, and this system has no way around.
    """
    path = str(socket)
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        return path
    if not _OPEN_FILES.is_dir():
        raise ConfigurationError(
            f"the path of the engine's socket is longer than {_LONGEST_PATH} bytes: {path}; use a shorter data folder "
            "(PERDURE_LOCAL_DIR)"
        )
    try:
        folder = os.open(socket.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"the folder of the engine's socket can't be opened: {error}") from error
    return str(_OPEN_FILES / str(folder) / socket.name)
