"""The TCP proxy of chaos runs, between a real client and a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.support import eventually
from tests.system.chaos.network import TcpProxy


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    """A proxy of a server that echoes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1")
    async with server, TcpProxy.to(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


class Client:
    """A connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def echoed(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))

    async def is_closed(self) -> bool:
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


Connect = Callable[[TcpProxy], Awaitable[Client]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects to a proxy; the connections are closed after the test."""
    clients: list[Client] = []

    async def to(proxy: TcpProxy) -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", proxy.port)))
        return clients[-1]

    yield to
    for client in clients:
        client.writer.transport.abort()


async def test_forwards_large_data_unchanged(proxy, connect):
    client = await connect(proxy)
    data = bytes(range(256)) * 20_000
    assert await client.echoed(data) == data


async def test_forwards_end_of_data(proxy, connect):
    client = await connect(proxy)
    client.writer.write(b"last")
    client.writer.write_eof()
    assert await client.reader.read() == b"last"


async def test_delay_applies_in_both_directions(proxy, connect):
    client = await connect(proxy)
    async with proxy.delayed(0.1):
        began = time.monotonic()
        assert await client.echoed(b"slow") == b"slow"
        assert time.monotonic() - began >= 0.2
    assert await client.echoed(b"again") == b"again"


async def test_cut_resets_open_and_new_connections(proxy, connect):
    client = await connect(proxy)
    assert await client.echoed(b"before") == b"before"
    async with proxy.cut():
        assert await client.is_closed()
        assert await (await connect(proxy)).is_closed()
    assert await (await connect(proxy)).echoed(b"after") == b"after"


async def test_black_hole_holds_data_back(proxy, connect):
    client = await connect(proxy)
    assert await client.echoed(b"before") == b"before"
    async with proxy.black_holed():
        answer = asyncio.create_task(client.echoed(b"held"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(answer), 0.2)
    assert await answer == b"held"


async def test_missing_server_closes_connection(connect):
    async with TcpProxy.to(1) as proxy:
        assert await (await connect(proxy)).is_closed()


async def test_closed_proxy_leaves_no_task(proxy, connect):
    before = asyncio.all_tasks()
    async with TcpProxy.to(proxy.port) as second:
        client = await connect(second)
        assert await client.echoed(b"open") == b"open"
    assert await client.is_closed()
    await eventually(lambda: asyncio.all_tasks() <= before, what="end of the proxy's tasks")
