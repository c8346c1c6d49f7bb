"""TCP proxy that delays, cuts and black-holes the connections to one address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Self

_CHUNK: Final = 65_536
_HOST: Final = "127.0.0.1"


class TcpProxy:
    """A proxy on a free port. Open it with `to`.

    Args:
        port: Port of this machine that it forwards to.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._flows = asyncio.Event()
        self._flows.set()
        self._delay = 0.0
        self._refuses = False
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        """Port that it listens on."""

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Self]:
        """Forward connections inside the context.

        Args:
            port: See the class.
        """
        proxy = cls(port)
        server = await asyncio.start_server(proxy._accept, _HOST)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            proxy._abort()
            for task in proxy._tasks:
                task.cancel()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)

    @asynccontextmanager
    async def delayed(self, seconds: float) -> AsyncIterator[None]:
        """Delay each chunk of data, in both directions.

        Args:
            seconds: The delay.
        """
        self._delay = seconds
        try:
            yield
        finally:
            self._delay = 0.0

    @asynccontextmanager
    async def cut(self) -> AsyncIterator[None]:
        """Reset all connections, and each new one."""
        self._refuses = True
        self._abort()
        try:
            yield
        finally:
            self._refuses = False

    @asynccontextmanager
    async def black_holed(self) -> AsyncIterator[None]:
        """Keep all connections open without forwarding anything. The data arrives after the end of the context."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    def _abort(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            if self._refuses:
                return
            far_reader, far = await asyncio.open_connection(_HOST, self._to)
            self._open.add(far)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far))
                group.create_task(self._pump(far_reader, writer))
        except (OSError, ExceptionGroup):  # a peer closed its connection, so the other one ends, too
            pass
        finally:
            for end in (writer, far):
                if end is not None:
                    self._open.discard(end)
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await asyncio.sleep(self._delay)
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()
