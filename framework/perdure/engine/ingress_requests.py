"""Requests to the engine's ingress: paths, retries and responses.

A request is retried only if that is safe. An error of the handler, which ``x-restate-error-source`` marks, is final.
Without a response, a request is retried if it has an idempotency key or is idempotent by itself: submitting a workflow,
attaching, completing a signal. Calling a workflow's main handler is not: the second call returns a conflict instead of
the result. Submit the workflow and attach to it. A retry waits at least as long as ``Retry-After`` asks.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from perdure._runtime.http import http_client
from perdure._runtime.message_sizes import check_message
from perdure._runtime.places import OutputSource, ValueCodec
from perdure._runtime.retry_after import retry_after
from perdure._runtime.serdes import serde_for
from perdure.engine.proxy_responses import ProxyResponse, proxy_response
from perdure.errors import IngressError, InvalidInput, NotReady, UnreadableValue
from perdure.idempotency import KEY_IS_USED_ONCE, KEY_REUSED, check_idempotency_key
from perdure.retry import RetryPolicy
from perdure.targets import Target, check_key

_RETRIED_STATUS = frozenset({429, 502, 503, 504})
_CONNECT_TIMEOUT = 5.0
_NOT_READY = 470
_INVOCATION_ID = "x-restate-id"
# Characters of a path segment that need no quoting. The ingress does not decode idempotency keys in paths.
_UNQUOTED = "!$&'()*+,;=:@"


class IngressRequests:
    """HTTP transport with retries for one ingress.

    Args:
        url: The URL of the ingress.
        headers: Headers of every request.
        timeout: The time limit of one request; None for no limit.
        max_attempts: The maximum number of attempts of a request that is safe to repeat.
        http: A HTTP client to use, which is not closed.
        max_retry_after: The longest wait that a ``Retry-After`` header may ask for.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout: timedelta | None,
        max_attempts: int,
        http: httpx.AsyncClient | None,
        max_retry_after: timedelta,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = headers
        self._retry = RetryPolicy(
            initial_interval=timedelta(milliseconds=100), max_interval=timedelta(seconds=5), max_attempts=max_attempts
        )
        self._max_retry_after = max_retry_after
        self._owned = http is None
        self._http = http or http_client(
            url,
            timeout=httpx.Timeout(None if timeout is None else timeout.total_seconds(), connect=_CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._owned:
            await self._http.aclose()

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        timeout: timedelta | None = None,
        repeatable: bool,
    ) -> httpx.Response:
        """Send a request, with retries where they are safe.

        Args:
            method: The HTTP method.
            path: The quoted path.
            body: The body.
            content_type: The content type of the body.
            headers: Further headers. Those of the client win.
            timeout: The time limit of each attempt; that of the client by default.
            repeatable: Whether the request is idempotent.

        Raises:
            IngressError: There was no response, or an error response.
            TooLarge: The body exceeds the engine's message limit.
        """
        sent = {**(headers or {}), **self._headers}
        if body is not None:
            check_message(f"the body of {method} {path}", len(body))
            sent["content-type"] = content_type
        options: dict[str, Any] = {}
        if timeout is not None:
            options["timeout"] = httpx.Timeout(timeout.total_seconds(), connect=_CONNECT_TIMEOUT)
        attempt = 0
        while True:
            problem: IngressError
            asked: timedelta | None = None
            cause: httpx.TransportError | None = None
            try:
                response = await self._http.request(method, self.url + path, content=body, headers=sent, **options)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # not sent, so always safe to retry
                cause = error
                problem = IngressError(
                    f"no connection to the ingress at {self.url}: start the engine, or set PERDURE_INGRESS_URL"
                )
                safe = True
            except httpx.UnsupportedProtocol as error:
                raise IngressError(f"the ingress URL '{self.url}' is invalid: it begins with http://") from error

            except httpx.TimeoutException as error:
                cause = error
                problem = IngressError(
                    f"{method} {path}: the ingress at {self.url} did not answer in time ({type(error).__name__})"
                )
                safe = repeatable
            except httpx.TransportError as error:
                cause = error
                problem = IngressError(f"{method} {path}: the connection broke before the response: {error!r}")
                safe = repeatable
            else:
                if response.is_success:
                    return response
                problem = _error(response)
                asked = retry_after(response.headers, self._max_retry_after)
                retried = problem.source != "invocation" and response.status_code in _RETRIED_STATUS
                safe = (retried and repeatable) or proxy_response(response) is ProxyResponse.NOT_SENT
            attempt += 1
            if not safe or not self._retry.permits(attempt):
                raise problem from cause
            delay = self._retry.delay_after(attempt)
            await asyncio.sleep((delay if asked is None else max(delay, asked)).total_seconds())


def handler_path(target: Target[Any, Any, Any], key: str | None) -> str:
    """Return the path of a handler. Raises InvalidInput if its key is missing or empty."""
    key = check_key(target, key)
    middle = "" if key is None else f"/{path_segment(key)}"
    return f"/{path_segment(target.service)}{middle}/{target.handler}"


def invocation_path(
    target: Target[Any, Any, Any], key: str | None, idempotency_key: str | None, invocation_id: str | None
) -> str:
    """Return the path of an invocation, given its ID, its idempotency key, or the workflow's key."""
    if invocation_id is not None:
        return f"/restate/invocation/{path_segment(invocation_id)}"
    if idempotency_key is not None:
        return f"/restate/invocation{handler_path(target, key)}/{_literal(check_idempotency_key(idempotency_key))}"
    if key:
        return f"/restate/workflow/{path_segment(target.service)}/{path_segment(key)}"
    raise InvalidInput(
        f"{target}: pass the invocation_id, the idempotency_key, or the key of a workflow",
        metadata={"field": "invocation_id"},
    )


def path_segment(text: str) -> str:
    """Return a text quoted as one path segment."""
    quoted = quote(text, safe="")
    # HTTP clients resolve dot segments, so the request would reach another handler.
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


def _literal(idempotency_key: str) -> str:
    if quote(idempotency_key, safe=_UNQUOTED) != idempotency_key or idempotency_key in (".", ".."):
        raise InvalidInput(
            f"idempotency key {idempotency_key!r}: the ingress finds an invocation only by a key of letters, digits "
            f"and -._~{_UNQUOTED}; attach with the invocation_id that send returned",
            metadata={"field": "idempotency_key"},
        )
    return idempotency_key


def check_header(value: str, name: str) -> str:
    """Return a header value, or refuse one that cannot be sent."""
    if not (value.isascii() and value.isprintable()):
        raise InvalidInput(
            f"{name} {value!r} cannot be sent as a header: use printable ASCII, for example by quoting",
            metadata={"field": "idempotency_key" if name == "idempotency key" else "headers"},
        )
    return value


def open_output(response: httpx.Response, codec: ValueCodec, source: OutputSource) -> bytes:
    """Return the decrypted output of a response.

    Args:
        response: The response.
        codec: The codec with the keys.
        source: The known properties of the invocation. A missing ID is taken from the response.

    Raises:
        UnreadableValue: The output belongs to another invocation, or the response does not name its invocation.
    """
    invocation = source.invocation or response.headers.get(_INVOCATION_ID, "")
    if not invocation:
        raise UnreadableValue(
            f"{source}: the response has no header {_INVOCATION_ID}, so its output cannot be verified: configure the "
            "proxy in front of the ingress to forward this header"
        )
    return codec.open_output(response.content, dataclasses.replace(source, invocation=invocation))


def parse_output(
    target: Target[Any, Any, Any],
    response: httpx.Response,
    codec: ValueCodec | None,
    *,
    key: str | None = None,
    invocation_id: str | None = None,
) -> Any:
    """Return the output of a response in the handler's type.

    Args:
        target: The handler.
        response: The response.
        codec: The codec of the journal; None without encryption.
        key: The key of the virtual object or workflow; None if unknown.
        invocation_id: The requested invocation; None for the one that the response names.

    Raises:
        UnreadableValue: The output belongs to another invocation.
        IngressError: The output does not match the type.
    """
    serde = serde_for(target.output)
    if codec is None:
        content = response.content
    else:
        content = open_output(response, codec, OutputSource(invocation_id or "", target.service, key, target.handler))
    try:
        return serde.deserialize(content)
    except ValidationError as error:
        name = getattr(target.output, "__qualname__", str(target.output))
        raise IngressError(
            f"{target}: the response does not fit {name}: {error}", status_code=response.status_code
        ) from error


def _error(response: httpx.Response) -> IngressError:
    source = response.headers.get("x-restate-error-source")
    proxy = proxy_response(response)
    body: Any
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {"message": response.text}
        if source is None:  # errors of the ingress are JSON and name their source
            request = f"{response.request.method} {response.request.url}"
            text = response.text.strip().partition("\n")[0] or response.reason_phrase
            body["message"] = f"{request}: the response is not by an ingress: {response.status_code} {text[:100]}"
    # The message of an exhausted handler contains a stack trace.
    message = f"\n{body.get('message') or ''}".partition("\nTraceback")[0].strip() or response.reason_phrase
    if message == KEY_REUSED:
        message = f"{message}: {KEY_IS_USED_ONCE}. Attach with IngressClient.attach(handler, key=...)"
    fields = body.get("metadata")
    metadata = {str(name): str(value) for name, value in fields.items()} if isinstance(fields, dict) else {}
    kind = NotReady if response.status_code == _NOT_READY and source == "ingress" else IngressError
    # The engine did not respond, as if the connection to it had failed.
    no_response = proxy in (ProxyResponse.NOT_SENT, ProxyResponse.UNKNOWN_OUTCOME)
    return kind(message, status_code=0 if no_response else response.status_code, source=source, metadata=metadata)
