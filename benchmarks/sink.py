"""Receiver that discards spans, in its own process so that it does not affect the measurement.

python -m benchmarks.sink 4318
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from typing import Final, cast

import uvloop

_HOST: Final = "127.0.0.1"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_HEAD_ENDS: Final = b"\r\n\r\n"


class _Sink(asyncio.Protocol):
    """One connection. Counts the bytes of bodies and reports the count on request."""

    taken = 0

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._head = b""
        self._left = 0  # bytes of the incoming body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        while data:
            if not self._left:
                self._head, ends, data = (self._head + data).partition(_HEAD_ENDS)
                if not ends:
                    return
                length = _LENGTH.search(self._head)
                self._left = 0 if length is None else int(length[1])
            part = min(self._left, len(data))
            _Sink.taken += part
            self._left -= part
            data = data[part:]
            if not self._left:
                self._answer()

    def _answer(self) -> None:
        body = str(_Sink.taken).encode() if self._head.startswith(b"GET ") else b""
        self._head = b""
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))


async def _serve(port: int) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await loop.create_server(_Sink, _HOST, port)
    async with server:
        await ended.wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
