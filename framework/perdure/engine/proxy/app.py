"""ASGI app of the proxy: checks a request, forwards it to the engine, and streams both bodies.

The engine permits every ``Origin`` with credentials and accepts every ``Host``. So browsers must not reach its
listeners, only this app. It refuses requests of web pages (`perdure.security.browsers`) and completions of other
results than awakeables (`perdure.engine.proxy.completions`), and removes the engine's ``access-control-*`` headers
unless the page is allowed. Everything else is forwarded unchanged, without a time limit.

The proxy's own responses have the header `PROXY_HEADER`:

====== =================== ===========================================================
status ``x-perdure-proxy`` when
====== =================== ===========================================================
4xx    ``refused``         the request violates a rule
503    ``not-sent``        the engine accepts no connection
502    ``unknown-outcome`` the connection broke before the engine's response
====== =================== ===========================================================
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import httpcore

from perdure._runtime.asgi import Message, Receive, Scope, Send, read_remaining
from perdure.engine.proxy.completions import completion_refusal
from perdure.engine.proxy.upstream import Connections, Upstream
from perdure.engine.proxy_responses import PROXY_HEADER, ProxyResponse
from perdure.observability.logging import get_logger
from perdure.security.browsers import BrowserRules, Headers, Refusal, header_values

T = TypeVar("T")

HEALTH_PATH: Final = b"/-/healthy"
"""Path that the proxy answers itself, whether or not the engine answers."""

_TIMEOUT: Final = {"timeout": {"connect": 5.0, "read": None, "write": None, "pool": None}}
# Headers of a single connection (RFC 9110, 7.6.1), and `expect`, to which the server has responded.
_HOP_BY_HOP: Final = frozenset(
    b"connection expect keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_READ_TIMEOUT: Final = 5.0
_MAX_READ_BYTES: Final = 64 * 1024 * 1024
_CORS: Final = b"access-control-"
_CREDENTIALS: Final = b"access-control-allow-credentials"
_PROXY_HEADER: Final = PROXY_HEADER.encode()

log = get_logger(__name__)


class EngineProxy:
    """ASGI app that forwards the requests of programs.

    Args:
        name: The name of the listener in the log, ``ingress`` or ``admin``.
        upstream: The address of the listener.
        connections: The connections to the listener, see `Upstream.connections`.
        rules: The rules against web pages.
        is_ingress: Whether to refuse completions of other results than awakeables.
    """

    def __init__(
        self, name: str, upstream: Upstream, connections: Connections, rules: BrowserRules, *, is_ingress: bool = False
    ) -> None:
        self._name = name
        self._upstream = upstream
        self._connections = connections
        self._rules = rules
        self._is_ingress = is_ingress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            raise NotImplementedError(f"{scope['type']} is not served")
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        if path == HEALTH_PATH:  # tells web pages nothing
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok", "more_body": False})
            return
        headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
        refusal = self._rules.refusal(scope["method"], path, headers)
        if refusal is None and self._is_ingress:
            refusal = completion_refusal(path)
        if refusal is not None:
            log.warning("proxy.refused", listener=self._name, code=refusal.code, method=scope["method"])
            await _refuse(send, refusal)
            await self._read_remaining(receive)
            return
        try:
            await self._forward(scope, path, headers, receive, send)
        except _ClientGoneError:
            return

    async def _forward(
        self, scope: Scope, path: bytes, headers: list[tuple[bytes, bytes]], receive: Receive, send: Send
    ) -> None:
        body = _Body(receive, await receive())
        query: bytes = scope.get("query_string") or b""
        request = httpcore.Request(
            scope["method"],
            self._upstream.url(path + b"?" + query if query else path),
            headers=_forwarded(headers, body),
            content=body,
            extensions=_TIMEOUT,
        )
        try:
            response, connection = await _unless_gone(self._connections.send(request), body)
        except (httpcore.ConnectError, httpcore.ConnectTimeout):
            log.warning("proxy.not_sent", listener=self._name, upstream=str(self._upstream))
            message = "the engine accepts no connection; the request was not sent: try again"
            await _respond(send, 503, "engine_unreachable", message, ProxyResponse.NOT_SENT)
        except httpcore.LocalProtocolError:  # granian is less strict than httpcore
            refusal = Refusal(400, "ambiguous_request", "a header contains characters that HTTP forbids")
            await _refuse(send, refusal)
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            log.warning("proxy.unknown_outcome", listener=self._name, cause=type(error).__name__)
            message = "the connection to the engine broke before its response; the request may have been started"
            await _respond(send, 502, "unknown_outcome", message, ProxyResponse.UNKNOWN_OUTCOME)
        else:
            try:
                await _forward_response(response, send, allow_cors=bool(header_values(headers, b"origin")))
            finally:
                await self._connections.release(response, connection)
        if not body.is_read:
            await self._read_remaining(receive)

    @staticmethod
    async def _read_remaining(receive: Receive) -> None:
        # Within limits: closing at once could destroy the response.
        await read_remaining(receive, seconds=_READ_TIMEOUT, max_bytes=_MAX_READ_BYTES)


class _ClientGoneError(Exception):
    """The client closed its connection before the response."""


class _Body:
    """Streamed body of a request, iterated once."""

    def __init__(self, receive: Receive, first: Message) -> None:
        self.is_whole = not first.get("more_body", False)
        self.size = len(first.get("body", b""))
        self._receive = receive
        self._message = first
        self._ended = asyncio.Event()

    @property
    def is_read(self) -> bool:
        """Whether the body was forwarded completely."""
        return self._ended.is_set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            if self._message["type"] == "http.disconnect":
                raise _ClientGoneError
            if chunk := self._message.get("body", b""):
                yield chunk
            if not self._message.get("more_body", False):
                self._ended.set()
                return
            self._message = await self._receive()

    async def until_gone(self) -> None:
        """Wait until the client disconnects after its body was forwarded."""
        await self._ended.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _unless_gone(sent: Coroutine[Any, Any, T], body: _Body) -> T:
    """Wait for the head of a response. A disconnect of the client closes the connection to the engine."""
    response = asyncio.ensure_future(sent)
    gone = asyncio.ensure_future(body.until_gone())
    try:
        await asyncio.wait({response, gone}, return_when=asyncio.FIRST_COMPLETED)
        if response.done():
            return response.result()
        raise _ClientGoneError
    finally:
        gone.cancel()
        if not response.done():
            response.cancel()
            with suppress(asyncio.CancelledError):
                await response


async def _forward_response(response: httpcore.Response, send: Send, *, allow_cors: bool) -> None:
    """Forward a response chunk by chunk."""
    dropped = _hop_by_hop(response.headers)
    headers = [
        (name, value)
        for name, value in ((name.lower(), value) for name, value in response.headers)
        if name not in dropped
        and name not in (_CREDENTIALS, _PROXY_HEADER)
        and (allow_cors or not name.startswith(_CORS))
    ]
    lengths = header_values(headers, b"content-length")
    expected = int(lengths[0]) if lengths else None
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    size, ended = 0, False
    async for chunk in response.aiter_stream():
        size += len(chunk)
        ended = size == expected
        await send({"type": "http.response.body", "body": chunk, "more_body": not ended})
    if not ended:
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _hop_by_hop(headers: Headers) -> frozenset[bytes]:
    """Return the names of the headers that must not be forwarded."""
    named = (part.strip() for name, value in headers if name.lower() == b"connection" for part in value.split(b","))
    return _HOP_BY_HOP.union(name.lower() for name in named if name)


def _forwarded(headers: list[tuple[bytes, bytes]], body: _Body) -> list[tuple[bytes, bytes]]:
    """Return the headers to forward, with exactly one declaration of the body's length."""
    dropped = _hop_by_hop(headers)
    forwarded = [(name, value) for name, value in headers if name not in dropped and name != _PROXY_HEADER]
    if not header_values(forwarded, b"content-length"):
        if not body.is_whole:
            forwarded.append((b"transfer-encoding", b"chunked"))
        elif body.size:
            forwarded.append((b"content-length", str(body.size).encode()))
    return forwarded


async def _refuse(send: Send, refusal: Refusal) -> None:
    await _respond(send, refusal.status, refusal.code, refusal.message, ProxyResponse.REFUSED)


async def _respond(send: Send, status: int, code: str, message: str, kind: ProxyResponse) -> None:
    body: dict[str, Any] = {"code": status, "message": message, "metadata": {"code": code}}
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (_PROXY_HEADER, kind.encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode(), "more_body": False})
