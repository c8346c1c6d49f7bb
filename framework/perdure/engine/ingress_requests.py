"""Requests to the engine's ingress: paths, retries and responses.

A request is retried only if that is safe. An error of the handler, which ``x-restate-error-source`` marks, is final.
A request that was certainly not accepted is retried, and so is one for a handler that is not registered, as a
just-started engine claims for a moment. After an unknown outcome, a request is retried if it has an idempotency key or
is idempotent by itself: submitting a workflow, attaching, completing a signal. Calling a workflow's main handler is
not: the second call returns a conflict instead of the result. Submit the workflow and attach to it. A retry waits at
least as long as ``Retry-After`` asks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from perdure._runtime.http import http_client
from perdure._runtime.message_sizes import check_message
from perdure._runtime.places import OutputSource, ValueCodec
from perdure._runtime.retry_after import retry_after
from perdure._runtime.serdes import serde_for
from perdure.engine.ingress_errors import READS, is_read, may_be_unknown, response_error
from perdure.engine.proxy_responses import ProxyResponse, proxy_response
from perdure.engine.starting import start_delays
from perdure.errors import Acceptance, IngressError, InvalidInput, NotReady, NotRegistered, UnreadableValue
from perdure.idempotency import check_idempotency_key
from perdure.retry import RetryPolicy
from perdure.targets import Target, check_key

_RETRIED_STATUS = frozenset({429, 502, 503, 504})
_CONNECT_TIMEOUT = 5.0
_INVOCATION_ID = "x-restate-id"


class IngressRequests:
    """HTTP transport with retries for one ingress.

    Args:
        url: The URL of the ingress.
        headers: Headers of every request.
        timeout: The time limit of one request; None for no limit.
        max_attempts: The maximum number of attempts of a request that is safe to repeat.
        http: A HTTP client to use, which is not closed.
        max_retry_after: The longest wait that a ``Retry-After`` header may ask for.
        registration_timeout: The longest wait for the registration of a handler.
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
        registration_timeout: timedelta,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = headers
        self._retry = RetryPolicy(
            initial_interval=timedelta(milliseconds=100), max_interval=timedelta(seconds=5), max_attempts=max_attempts
        )
        self._max_retry_after = max_retry_after
        self._registration_timeout = registration_timeout
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
        reads: bool = False,
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
            reads: Whether the request reads a result instead of starting something.

        Raises:
            NotRegistered: The handler is not registered, after `registration_timeout`.
            IngressError: There was no response, or an error response.
            TooLarge: The body exceeds the engine's message limit.
        """
        sent = {**(headers or {}), **self._headers}
        if body is not None:
            check_message(f"the body of {method} {path}", len(body))
            sent["content-type"] = content_type
        request = self._http.build_request(
            method,
            self.url + path,
            content=body,
            headers=sent,
            extensions={READS: reads},
            **({} if timeout is None else _timeout(timeout)),
        )
        failures, is_unknown = 0, False
        start = start_delays(self._registration_timeout)
        while True:
            outcome = await self._attempt(request)
            if isinstance(outcome, httpx.Response):
                return outcome
            error = outcome.error
            is_unknown = is_unknown or error.acceptance is Acceptance.UNKNOWN
            delay: timedelta | None = None
            if isinstance(error, NotRegistered):
                delay = next(start, None)
            else:
                failures += 1
                is_safe = repeatable or error.acceptance is Acceptance.NOT_ACCEPTED
                if is_safe and outcome.is_transient and self._retry.permits(failures):
                    delay = max(self._retry.delay_after(failures), outcome.retry_after or timedelta(0))
            if delay is None:
                raise self._completed(error, is_unknown=is_unknown) from error.__cause__
            await asyncio.sleep(delay.total_seconds())

    def _completed(self, error: IngressError, *, is_unknown: bool) -> IngressError:
        """Add advice to the error of the last attempt, and the outcome of earlier ones."""
        if isinstance(error, NotRegistered):
            limit = self._registration_timeout.total_seconds()
            waited = f" It was not registered within {limit:g} s either." if limit else ""
            error.message += f"{waited} Start the service and register its URL, or correct the name of the handler"
        if is_unknown and error.acceptance is Acceptance.NOT_ACCEPTED:
            error.acceptance = Acceptance.UNKNOWN
            error.message += "; an earlier attempt may have been accepted"
        error.args = (error.message,)
        return error

    async def attach(self, address: InvocationAddress, *, timeout: timedelta | None = None) -> httpx.Response:
        """Wait for the result of an invocation.

        The ingress answers an attach to an unknown invocation like a handler that fails with 404 and without metadata.
        Only a request for the output distinguishes them.

        Args:
            address: The invocation.
            timeout: The time limit of each attempt; that of the client by default.

        Raises:
            InvocationNotFound: There is no such invocation.
            IngressError: The invocation failed, or there was no response.
        """
        while True:
            try:
                return await self._read("attach", address, timeout)
            except IngressError as error:
                if not may_be_unknown(error):
                    raise
            try:
                return await self.output(address, timeout=timeout)
            except NotReady:  # the invocation was accepted after the attach
                await asyncio.sleep(self._retry.delay_after(1).total_seconds())

    async def output(self, address: InvocationAddress, *, timeout: timedelta | None = None) -> httpx.Response:
        """Return the result of an invocation without waiting for it.

        Args:
            address: The invocation.
            timeout: The time limit of each attempt; that of the client by default.

        Raises:
            NotReady: The invocation has not ended.
            InvocationNotFound: There is no such invocation.
            IngressError: The invocation failed, or there was no response.
        """
        return await self._read("output", address, timeout)

    async def _read(self, verb: str, address: InvocationAddress, timeout: timedelta | None) -> httpx.Response:
        path = f"/restate/{verb}{address.segment}"
        return await self.send(address.method, path, body=address.body, timeout=timeout, repeatable=True, reads=True)

    async def _attempt(self, request: httpx.Request) -> httpx.Response | _Failure:
        name = f"{request.method} {request.url.raw_path.decode()}"
        # A connection error proves that a request was not sent, but a read learns nothing about the invocation.
        unsent = Acceptance.UNKNOWN if is_read(request) else Acceptance.NOT_ACCEPTED
        try:
            response = await self._http.send(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            message = f"no connection to the ingress at {self.url}: start the engine, or set PERDURE_INGRESS_URL"
            return _failure(message, error, unsent)
        except httpx.UnsupportedProtocol as error:
            message = f"the ingress URL '{self.url}' is invalid: it begins with http://"
            return _failure(message, error, unsent, is_transient=False)
        except httpx.TimeoutException as error:
            message = f"{name}: the ingress at {self.url} did not answer in time ({type(error).__name__})"
            return _failure(message, error, unsent if isinstance(error, httpx.PoolTimeout) else Acceptance.UNKNOWN)
        except httpx.TransportError as error:
            return _failure(f"{name}: the connection broke before the response: {error!r}", error)
        if response.is_success:
            return response
        problem = response_error(response)
        is_retried = problem.source != "invocation" and response.status_code in _RETRIED_STATUS
        is_unsent = proxy_response(response) is ProxyResponse.NOT_SENT
        asked = retry_after(response.headers, self._max_retry_after)
        return _Failure(problem, is_transient=is_retried or is_unsent, retry_after=asked)


@dataclass(frozen=True)
class _Failure:
    """A failed attempt.

    Args:
        error: The error.
        is_transient: Whether another attempt may succeed.
        retry_after: The wait that the response asks for.
    """

    error: IngressError
    is_transient: bool = True
    retry_after: timedelta | None = None


def _failure(
    message: str,
    cause: httpx.TransportError,
    acceptance: Acceptance = Acceptance.UNKNOWN,
    *,
    is_transient: bool = True,
) -> _Failure:
    error = IngressError(message, acceptance=acceptance)
    error.__cause__ = cause
    return _Failure(error, is_transient)


def _timeout(limit: timedelta) -> dict[str, Any]:
    return {"timeout": httpx.Timeout(limit.total_seconds(), connect=_CONNECT_TIMEOUT)}


def handler_path(target: Target[Any, Any, Any], key: str | None, verb: Literal["call", "send"] = "call") -> str:
    """Return the path of a handler. Raises InvalidInput if its key is missing or empty."""
    key = check_key(target, key)
    middle = "" if key is None else f"/{path_segment(key)}"
    return f"/restate/{verb}/{path_segment(target.service)}{middle}/{target.handler}"


@dataclass(frozen=True)
class InvocationAddress:
    """What identifies an invocation in a request for its result.

    Args:
        method: The HTTP method.
        segment: The invocation's ID as a path segment with a slash; empty if the body identifies the invocation.
        body: The body.
    """

    method: str
    segment: str = ""
    body: bytes | None = None


def invocation_address(
    target: Target[Any, Any, Any], key: str | None, idempotency_key: str | None, invocation_id: str | None
) -> InvocationAddress:
    """Return the address of an invocation, given its ID, its idempotency key, or the workflow's key."""
    if invocation_id is not None:
        return InvocationAddress("GET", f"/{path_segment(invocation_id)}")
    fields: dict[str, str | None]
    if idempotency_key is not None:
        fields = {
            "target": "idempotentInvocation",
            "service": target.service,
            "handler": target.handler,
            "idempotencyKey": check_idempotency_key(idempotency_key),
        }
        if (checked := check_key(target, key)) is not None:
            fields["key"] = checked
    elif key:
        fields = {"target": "workflow", "workflowName": target.service, "workflowKey": key}
    else:
        raise InvalidInput(
            f"{target}: pass the invocation_id, the idempotency_key, or the key of a workflow",
            metadata={"field": "invocation_id"},
        )
    return InvocationAddress("POST", body=json.dumps(fields).encode())


def path_segment(text: str) -> str:
    """Return a text quoted as one path segment."""
    quoted = quote(text, safe="")
    # HTTP clients resolve dot segments, so the request would reach another handler.
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


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
            f"{target}: the response does not fit {name}: {error}",
            status_code=response.status_code,
            acceptance=Acceptance.ACCEPTED,
        ) from error
