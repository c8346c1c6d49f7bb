"""The proxy's ASGI app: checks a request, forwards it to the engine, and streams both bodies.

The engine reflects every ``Origin`` with credentials, and takes every ``Host``. So its listeners are kept where no
browser reaches them, and this app stands in front. It refuses requests of web pages (`perdure.security.browsers`), and
completions of anything but an awakeable (`perdure.engine.proxy.completions`). It
passes no ``access-control-*`` header of the engine's on unless the page is allowed. Everything else goes through as it
came. A call may wait as long as its handler takes.

Answers of the proxy's own carry `PROXY_HEADER`:

====== =================== ===========================================================
status ``x-perdure-proxy`` when
====== =================== ===========================================================
4xx    ``refused``         a rule is broken
503    ``not-sent``        the engine takes no connection
502    ``unknown-outcome`` the connection broke before the engine's answer
====== =================== ===========================================================
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import httpcore

from perdure._runtime.asgi import Message, Receive, Scope, Send
from perdure.engine.proxy.completions import completion_refusal
from perdure.engine.proxy.upstream import Connections, Upstream
from perdure.engine.proxy_responses import PROXY_HEADER, ProxyResponse
from perdure.observability.logging import get_logger
from perdure.security.browsers import BrowserRules, Headers, Refusal, header_values

__all__ = ["EngineProxy"]

T = TypeVar("T")

_CONNECT_WITHIN: Final = 5.0
_TIMEOUT: Final = {"timeout": {"connect": _CONNECT_WITHIN, "read": None, "write": None, "pool": None}}
# A connection's own headers end with the connection (RFC 9110, 7.6.1). The server has answered `expect` already.
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_REST_WITHIN: Final = 5.0
_LONGEST_REST: Final = 64 * 1024 * 1024
_CORS: Final = b"access-control-"
_CREDENTIALS: Final = b"access-control-allow-credentials"
_PROXY_HEADER: Final = PROXY_HEADER.encode()

log = get_logger(__name__)


class EngineProxy:
    """Forwards what no web page has sent.

    Args:
        name: What is behind it, ``ingress`` or ``admin``, for the log.
        upstream: Where that is.
        connections: Connections to it, see `Upstream.connections`.
        rules: Which requests are refused.
        is_ingress: Whether it is the ingress, where completions of anything but an awakeable are refused, too.
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
        """Serve one request."""
        if scope["type"] != "http":
            raise NotImplementedError(f"{scope['type']} is not served")
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
        refusal = self._rules.refusal(scope["method"], path, headers)
        if refusal is None and self._is_ingress:
            refusal = completion_refusal(path)
        if refusal is not None:
            log.warning("proxy.refused", listener=self._name, code=refusal.code, method=scope["method"])
            await _refuse(send, refusal)
            await _take_rest(receive)
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
            message = "the engine takes no connection; the request was not sent: try again"
            await _answer(send, 503, "engine_unreachable", message, ProxyResponse.NOT_SENT)
        except httpcore.LocalProtocolError:  # what the server took, and the engine's protocol forbids
            refusal = Refusal(400, "ambiguous_request", "a header holds what HTTP forbids")
            await _refuse(send, refusal)
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            log.warning("proxy.unknown_outcome", listener=self._name, cause=type(error).__name__)
            message = "the connection to the engine broke before its answer; the request may have been started"
            await _answer(send, 502, "unknown_outcome", message, ProxyResponse.UNKNOWN_OUTCOME)
        else:
            try:
                await _returned(response, send, allowed=bool(header_values(headers, b"origin")))
            finally:
                await self._connections.release(response, connection)
        if not body.is_read:
            await _take_rest(receive)


class _ClientGoneError(Exception):
    """The client has closed its connection before the answer."""


class _Body:
    """A request's body, as it arrives; iterated once."""

    def __init__(self, receive: Receive, first: Message) -> None:
        self.is_whole = not first.get("more_body", False)
        self.size = len(first.get("body", b""))
        self._receive = receive
        self._message = first
        self._ended = asyncio.Event()

    @property
    def is_read(self) -> bool:
        """Tell if all of it was sent on."""
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
        """Wait until the client goes, once its body has been sent on."""
        await self._ended.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _unless_gone(sent: Coroutine[Any, Any, T], body: _Body) -> T:
    """Wait for the head of an answer. A client that goes closes the connection to the engine."""
    answer = asyncio.ensure_future(sent)
    gone = asyncio.ensure_future(body.until_gone())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise _ClientGoneError
    finally:
        gone.cancel()
        if not answer.done():
            answer.cancel()
            with suppress(asyncio.CancelledError):
                await answer


async def _returned(response: httpcore.Response, send: Send, *, allowed: bool) -> None:
    """Pass an answer on, chunk by chunk."""
    dropped = _dropped(response.headers)
    headers = [
        (name, value)
        for name, value in ((name.lower(), value) for name, value in response.headers)
        if name not in dropped and name not in (_CREDENTIALS, _PROXY_HEADER) and (allowed or not name.startswith(_CORS))
    ]
    lengths = header_values(headers, b"content-length")
    expected = int(lengths[0]) if lengths else None
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    taken, ended = 0, False
    async for chunk in response.aiter_stream():
        taken += len(chunk)
        ended = taken == expected
        await send({"type": "http.response.body", "body": chunk, "more_body": not ended})
    if not ended:
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _dropped(headers: Headers) -> frozenset[bytes]:
    """Return the names of the headers that belong to the connection alone."""
    named = (part.strip() for name, value in headers if name.lower() == b"connection" for part in value.split(b","))
    return _HOP_BY_HOP.union(each.lower() for each in named if each)


def _forwarded(headers: list[tuple[bytes, bytes]], body: _Body) -> list[tuple[bytes, bytes]]:
    """Return the headers that go on, with the length of the body in one way."""
    dropped = _dropped(headers)
    kept = [(name, value) for name, value in headers if name not in dropped and name != _PROXY_HEADER]
    if not header_values(kept, b"content-length"):
        if not body.is_whole:
            kept.append((b"transfer-encoding", b"chunked"))
        elif body.size:
            kept.append((b"content-length", str(body.size).encode()))
    return kept


async def _refuse(send: Send, refusal: Refusal) -> None:
    await _answer(send, refusal.status, refusal.code, refusal.message, ProxyResponse.REFUSED)


async def _take_rest(receive: Receive) -> None:
    """Read what a client still sends after its answer, within limits: closing at once could destroy the answer."""
    taken = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_REST_WITHIN):
            while taken < _LONGEST_REST:
                message = await receive()
                taken += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


async def _answer(send: Send, status: int, code: str, message: str, kind: ProxyResponse) -> None:
    body: dict[str, Any] = {"code": status, "message": message, "metadata": {"code": code}}
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (_PROXY_HEADER, kind.encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode(), "more_body": False})
