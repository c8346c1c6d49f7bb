"""TCP ports and Unix sockets: find free ports, say clearly when one is taken, reach a socket in a deep folder."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from perdure.errors import ConfigurationError

__all__ = ["connectable", "ensure_free", "free_ports", "reserve"]

# Linux takes 107 bytes, macOS 103.
_LONGEST_PATH: Final = 103
_OPEN_FILES: Final = Path("/proc/self/fd")

# Below the ephemeral ports of every system: an outgoing connection never takes the port of a server that restarts.
_RANGE: Final = range(20_000, 30_000)
_BLOCK: Final = 50


def reserve(host: str, port: int, setting: str) -> socket.socket:
    """Bind a port, so that nobody else can take it, and let a server of this process listen on it.

    The socket only holds the port; it never listens. A server that binds with ``SO_REUSEPORT``, as granian does, can
    share the port with it, while any other process that asks here first is refused. Without this, two servers that set
    ``SO_REUSEPORT`` would silently share the port's traffic.

    Args:
        host: Address or name to bind.
        port: Port to bind; 0 lets the system choose, see `socket.socket.getsockname`.
        setting: Name of the setting the port came from, for the error message.

    Returns:
        The bound socket; close it once the server has stopped.

    Raises:
        ConfigurationError: The port is none, is taken, or can't be bound by this user or on this host.
    """
    if not 0 <= port <= 65535:  # getaddrinfo would take another one instead, without a word
        raise ConfigurationError(f"port {port} ({setting}) is none: set {setting} to one of 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigurationError(
            f"the host '{host}' of port {port} ({setting}) is unknown: {error.strerror}"
        ) from error
    holder = socket.socket(family, kind, protocol)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(address)
        if hasattr(socket, "SO_REUSEPORT"):
            # Set after the bind: the bind itself must be exclusive.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        holder.close()
        raise ConfigurationError(_why(error, host, port, setting)) from error
    return holder


def ensure_free(host: str, port: int, setting: str) -> None:
    """Check that a port can be bound now.

    Args:
        host: Address or name to bind.
        port: The port.
        setting: Name of the setting the port came from, for the error message.

    Raises:
        ConfigurationError: The port is taken, or can't be bound by this user or on this host.
    """
    reserve(host, port, setting).close()


def free_ports(count: int) -> list[int]:
    """Return free ports of the loopback interface that no other process gets from this function.

    A process leases blocks of ports until it ends, and returns each port of them once. So test workers and platforms
    that start at the same time never choose the same port.

    Args:
        count: How many.

    Returns:
        The port numbers, all different and outside the range of ephemeral ports.

    Raises:
        ConfigurationError: All blocks are leased or in use.
    """
    return _ports.take(count)


class _Leases:
    """Blocks of ports that this process has leased.

    A bound socket on a block's first port is the lease. The kernel releases it when the process ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._held: list[socket.socket] = []
        self._unused: Iterator[int] = iter(())

    def take(self, count: int) -> list[int]:
        with self._lock:
            if self._pid != os.getpid():  # a fork inherits the blocks of its parent, which goes on using them
                self._pid, self._unused = os.getpid(), iter(())
            return [self._next() for _ in range(count)]

    def _next(self) -> int:
        while True:
            for port in self._unused:
                if (probe := _bound(port)) is not None:
                    probe.close()
                    return port
            self._unused = iter(self._lease())

    def _lease(self) -> range:
        # Shuffled: a block that was just released may have ports that its last owner's processes still use.
        for start in random.sample(_RANGE[::_BLOCK], len(_RANGE) // _BLOCK):
            if (lease := _bound(start)) is not None:
                self._held.append(lease)
                return range(start + 1, start + _BLOCK)
        raise ConfigurationError(
            f"no port from {_RANGE.start} to {_RANGE.stop - 1} is free: end processes that listen there"
        )


_ports = _Leases()


def _bound(port: int) -> socket.socket | None:
    """Return a socket that is bound to a port, without SO_REUSEADDR and so exclusively; None when the port is taken."""
    holder = socket.socket()
    try:
        holder.bind(("127.0.0.1", port))
    except OSError:
        holder.close()
        return None
    return holder


@contextmanager
def connectable(path: Path) -> Iterator[str]:
    """Yield a path of a Unix socket that is short enough to connect to, good until the context is left.

    A system takes about 100 bytes. Linux reaches a socket in a longer path through an open file of its folder.

    Args:
        path: The socket. Its folder exists.

    Raises:
        ConfigurationError: The path is too long, and this system has no way around.
    """
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    if not _OPEN_FILES.is_dir():
        raise ConfigurationError(
            f"the path of the engine's socket is longer than {_LONGEST_PATH} bytes: {path}; use a shorter data folder "
            "(PERDURE_LOCAL_DIR)"
        )
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"the folder of the engine's socket can't be opened: {error}") from error
    try:
        yield str(_OPEN_FILES / str(folder) / path.name)
    finally:
        os.close(folder)


def _why(error: OSError, host: str, port: int, setting: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken: stop what listens there, or set {setting} to another port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs more rights than this user has: set {setting} to a port above 1023"
    return f"port {port} on {host} ({setting}) can't be bound: {error.strerror}"
