"""TCP ports and Unix sockets: reservation, free ports, sockets with long paths."""

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

# The limit is 107 bytes on Linux and 103 on macOS.
_LONGEST_PATH: Final = 103
_OPEN_FILES: Final = Path("/proc/self/fd")

# Below the ephemeral ports of all systems: an outgoing connection never takes the port of a restarting server.
_RANGE: Final = range(20_000, 30_000)
_BLOCK: Final = 50


def reserve(host: str, port: int, setting: str) -> socket.socket:
    """Reserve a port for a server of this process.

    The returned socket is bound but never listens. Servers that set ``SO_REUSEPORT``, as granian does, would otherwise
    silently share the traffic of a port. The server's own socket can bind beside this one; another process that
    reserves the port fails.

    Args:
        host: Address or name to bind.
        port: Port to bind; 0 lets the system choose, see `socket.socket.getsockname`.
        setting: Name of the port's setting, for the error message.

    Returns:
        The bound socket; close it after the server has stopped.

    Raises:
        ConfigurationError: The port is invalid or taken, or cannot be bound by this user or on this host.
    """
    if not 0 <= port <= 65535:  # getaddrinfo would silently use another port
        raise ConfigurationError(f"port {port} ({setting}) is not a port: set {setting} to 1 to 65535")
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
        raise ConfigurationError(_explain(error, host, port, setting)) from error
    return holder


def ensure_free(host: str, port: int, setting: str) -> None:
    """Raise ConfigurationError if a port cannot be bound; see `reserve`."""
    reserve(host, port, setting).close()


def free_ports(count: int) -> list[int]:
    """Return free, different, non-ephemeral ports of the loopback interface.

    A process leases blocks of ports until it ends and returns each port once, so that concurrent test workers and
    platforms never choose the same port. Raises ConfigurationError if all blocks are leased or in use.
    """
    return _ports.take(count)


class _Leases:
    """Leased blocks of ports.

    The lease is a bound socket on the block's first port. The kernel releases it when the process ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._unused: Iterator[int] = iter(())

    def take(self, count: int) -> list[int]:
        with self._lock:
            if self._pid != os.getpid():  # after a fork: the blocks belong to the parent
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
        # Shuffled, because processes of the last owner may still use ports of a released block.
        for start in random.sample(_RANGE[::_BLOCK], len(_RANGE) // _BLOCK):
            if (lease := _bound(start)) is not None:
                lease.detach()  # the lease ends with the process, and not with the object
                return range(start + 1, start + _BLOCK)
        raise ConfigurationError(
            f"no port from {_RANGE.start} to {_RANGE.stop - 1} is free: end processes that listen there"
        )


_ports = _Leases()


def _bound(port: int) -> socket.socket | None:
    """Return a socket that is bound to a port exclusively (without SO_REUSEADDR), or None if the port is taken."""
    holder = socket.socket()
    try:
        holder.bind(("127.0.0.1", port))
    except OSError:
        holder.close()
        return None
    return holder


@contextmanager
def connectable(path: Path) -> Iterator[str]:
    """Yield a path of a Unix socket that is short enough to connect to, valid in the block.

    Systems limit the path to about 100 bytes. Linux reaches a socket in a longer path through an open file of its
    folder.

    Raises:
        ConfigurationError: The path is too long for this system.
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
        raise ConfigurationError(f"cannot open the folder of the engine's socket: {error}") from error
    try:
        yield str(_OPEN_FILES / str(folder) / path.name)
    finally:
        os.close(folder)


def _explain(error: OSError, host: str, port: int, setting: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken: stop the process that uses it, or set {setting} to another port"
    if error.errno == errno.EACCES:
        return f"permission denied for port {port} on {host}: set {setting} to a port above 1023"
    return f"cannot bind port {port} on {host} ({setting}): {error.strerror}"
