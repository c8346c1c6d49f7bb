"""Requests with an ambiguous end of the body, sent as bytes to a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from perdure._runtime.ports import free_ports
from services.console.http_framing import UnambiguousHttp, ambiguity
from tests.support import eventually

CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Serve an application that echoes path and body."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            event = await receive()
            body += event.get("body", b"")
            if not event.get("more_body", False):
                break
        echo_body = scope["path"].encode() + b" " + body
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(echo_body))]}
        )
        await send({"type": "http.response.body", "body": echo_body})

    (number,) = free_ports(1)
    config = uvicorn.Config(echo, port=number, http=UnambiguousHttp, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())

    async def started() -> bool:
        return server.started

    await eventually(started, what="the server")
    yield number
    server.should_exit = True
    await serving


async def answers(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


def post(*lines: bytes, body: bytes = CHUNKS, version: bytes = b"1.1") -> bytes:
    head = b"".join(line + b"\r\n" for line in (b"POST /first HTTP/" + version, b"host: x", *lines))
    return head + b"\r\n" + body + NEXT


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"content-length: 5", b"transfer-encoding: chunked"),
        post(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        post(b"content-length: 15", b"transfer-encoding: chunked"),
        post(b"content-length: 5", b"content-length: 5", body=b"hello"),
        post(b"content-length: 5", b"CONTENT-LENGTH: 6", body=b"hello!"),
        post(b"content-length: 5, 5", body=b"hello"),
        post(b"content-length: 5", b"content-length:5", body=b"hello"),
        post(b"transfer-encoding: chunked", b"transfer-encoding: chunked"),
        post(b"transfer-encoding: chunked", b"transfer-encoding: identity"),
        post(b"transfer-encoding: identity", b"content-length: 5", body=b"hello"),
        post(b"transfer-encoding: gzip, chunked"),
        post(b"transfer-encoding: xchunked"),
        post(b"transfer-encoding:\x0bchunked"),
        post(b"transfer-encoding : chunked"),
        post(b"content-length : 5", body=b"hello"),
        post(b"content-length: +5", body=b"hello"),
        post(b"content-length: 0x5", body=b"hello"),
        post(b"content-length: ", body=b"hello"),
        post(b"content-length: 5", b" , 5", body=b"hello"),
        post(b"x: a", b"\tcontent-length: 5", body=b"hello"),
        post(b"transfer-encoding: chunked", version=b"1.0"),
        post(b"content-length: 5", b"transfer-encoding: chunked").replace(b"\r\n", b"\n", 4),
    ],
)
async def test_reject_ambiguous_body(port: int, request_bytes: bytes):
    answer = await answers(port, request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.lower().count(b"http/1.1") == 1  # the rest is not parsed as a request
    assert b"/first" not in answer


async def test_reject_ambiguous_second_request(port: int):
    first = b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = await answers(port, first + post(b"content-length: 5", b"transfer-encoding: chunked"))
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert answer.count(b"HTTP/1.1 400 ") == 1
    assert b"/first" not in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"content-length: 5", body=b"hello"),
        post(b"transfer-encoding: chunked"),
        post(b"Transfer-Encoding: CHUNKED"),
    ],
)
async def test_accept_unambiguous_body(port: int, request_bytes: bytes):
    answer = await answers(port, request_bytes)
    assert b"/first hello" in answer
    assert b"/next " in answer


async def test_reject_headers_sent_in_parts(port: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in (
        b"POST /first HTTP/1.1\r\nhost: x\r\ncontent-le",
        b"ngth: 5\r\ntransfer-enc",
        b"oding: chunked\r\n\r\n",
    ):
        writer.write(part)
        await writer.drain()
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
    writer.close()


fields = st.lists(
    st.tuples(
        st.sampled_from([b"Content-Length", b"content-length", b"Transfer-Encoding", b"transfer-encoding", b"x"]),
        st.sampled_from([b"5", b"5, 5", b"chunked", b""]),
    ),
    max_size=5,
)


@given(fields)
def test_accept_at_most_one_framing_header(given_fields: list[tuple[bytes, bytes]]):
    head = b"POST / HTTP/1.1\r\n" + b"".join(b"%s: %s\r\n" % field for field in given_fields) + b"\r\n"
    framing = [value for name, value in given_fields if name != b"x"]
    is_plain = len(framing) <= 1 and not any(
        b"," in value for name, value in given_fields if name.lower() == b"content-length"
    )
    assert (ambiguity(head) is None) is is_plain
    assert ambiguity(head[:-2]) is None  # incomplete
