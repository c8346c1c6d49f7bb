"""Calling handlers from outside, over the engine's ingress.

A failed request is sent again only when that is safe: the ingress says with ``x-restate-error-source`` whether the
handler ended with the error (final) or the ingress itself had trouble. Without an answer, a request is repeated only
when it carries an idempotency key, which reaches the same invocation again. Starting a workflow without one is not
repeated: the second start of a key is a conflict, so its answer would tell nothing about the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, cast, overload
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from perdure.clients import NO_REQUEST
from perdure.errors import IngressError, InvalidInput
from perdure.idempotency import check_idempotency_key
from perdure.serdes import serde_for
from perdure.targets import Target, target_of

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output

_RETRIED_STATUS = frozenset({429, 502, 503, 504})
_LONGEST_PAUSE = 5.0


class IngressClient:
    """Calls, sends and signals over the ingress. Use it as an async context manager.

    Args:
        url: The ingress, for example ``http://127.0.0.1:8080``.
        auth_token: Sent as a bearer token, for an ingress behind a gateway.
        timeout: How long one request may take; None waits as long as the handler does.
        retries: How often a request that is safe to repeat is sent again.
        http: A client to use instead of an own one; it is not closed.
    """

    def __init__(
        self,
        url: str,
        *,
        auth_token: str | None = None,
        timeout: timedelta | None = None,
        retries: int = 4,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {auth_token}"} if auth_token else {}
        self._retries = retries
        self._owned = http is None
        self._http = http or httpx.AsyncClient(
            timeout=httpx.Timeout(None if timeout is None else timeout.total_seconds(), connect=5.0),
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._owned:
            await self._http.aclose()

    @overload
    async def call(
        self,
        handler: Target[I, O] | Callable[[Any, I], Awaitable[O]],
        request: I = NO_REQUEST,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> O: ...
    @overload
    async def call(
        self,
        handler: Callable[[Any], Awaitable[O]],
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> O: ...
    async def call(
        self,
        handler: Any,
        request: Any = NO_REQUEST,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Call a handler and wait for its response.

        Args:
            handler: A target, or the handler's function.
            request: The request.
            key: The key of a virtual object or workflow.
            idempotency_key: Makes the call safe to repeat.

        Raises:
            IngressError: The handler ended with a terminal error, or the ingress could not serve the request.
            InvalidInput: The idempotency key is empty, or can't be sent as a header.
        """
        target = target_of(handler)
        response = await self._post(_path(target, key), target, request, idempotency_key=idempotency_key)
        return _read(target, response)

    @overload
    async def send(
        self,
        handler: Target[I, Any] | Callable[[Any, I], Awaitable[Any]],
        request: I = NO_REQUEST,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
    ) -> str: ...
    @overload
    async def send(
        self,
        handler: Callable[[Any], Awaitable[Any]],
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
    ) -> str: ...
    async def send(
        self,
        handler: Any,
        request: Any = NO_REQUEST,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        delay: timedelta | None = None,
    ) -> str:
        """Start a handler and do not wait for it.

        Args:
            handler: A target, or the handler's function.
            request: The request.
            key: The key of a virtual object or workflow.
            idempotency_key: Sends with the same key start one invocation.
            delay: Start it this much later; durable. Nothing or less, as of a moment that has passed, means now.

        Returns:
            The invocation's id.

        Raises:
            IngressError: The ingress could not take the request.
            InvalidInput: The idempotency key is empty, or can't be sent as a header.
        """
        target = target_of(handler)
        query = "" if delay is None else f"?delay={max(0, round(delay.total_seconds() * 1000))}ms"
        response = await self._post(
            f"{_path(target, key)}/send{query}", target, request, idempotency_key=idempotency_key
        )
        try:
            return str(response.json()["invocationId"])
        except (ValueError, KeyError, TypeError) as error:
            message = f"{target}: the answer to a send holds no invocation id: {response.text[:200]!r}"
            raise IngressError(message, status_code=response.status_code) from error

    async def attach(self, target: Target[Any, O] | Callable[..., Awaitable[O]], *, key: str) -> O:
        """Wait for the result of a workflow that was started before.

        Args:
            target: The workflow's main handler.
            key: The workflow's key.

        Raises:
            IngressError: The workflow ended with a terminal error (its status), or there is none with this key (404).
        """
        found = target_of(target)
        path = f"/restate/workflow/{_segment(found.service)}/{_segment(key)}/attach"
        return cast("O", _read(found, await self._request("GET", path, repeatable=True)))

    async def output(self, target: Target[Any, O] | Callable[..., Awaitable[O]], *, key: str) -> O:
        """Return the result of a workflow without waiting.

        Args:
            target: The workflow's main handler.
            key: The workflow's key.

        Raises:
            IngressError: It is still running (status 470), ended with a terminal error, or does not exist (404).
        """
        found = target_of(target)
        path = f"/restate/workflow/{_segment(found.service)}/{_segment(key)}/output"
        return cast("O", _read(found, await self._request("GET", path, repeatable=True)))

    async def resolve_awakeable(self, id_: str, value: Any, type_: type[Any] | None = None) -> None:
        """Answer an external signal.

        Args:
            id_: The signal's id.
            value: The answer.
            type_: The answer's type; the value's own class by default.
        """
        body = serde_for(type_ or type(value)).serialize(value)
        await self._request("POST", f"/restate/awakeables/{_segment(id_)}/resolve", body=body, repeatable=True)

    async def reject_awakeable(self, id_: str, reason: str) -> None:
        """Fail an external signal: who waits gets a terminal error with the reason."""
        path = f"/restate/awakeables/{_segment(id_)}/reject"
        await self._request("POST", path, body=reason.encode(), content_type="text/plain", repeatable=True)

    async def _post(
        self, path: str, target: Target[Any, Any], request: Any, *, idempotency_key: str | None
    ) -> httpx.Response:
        if idempotency_key is not None:
            _check_header(check_idempotency_key(idempotency_key))
        # The ingress refuses an empty body of a handler with input, also where the input may be None.
        body = None if target.input is type(None) else serde_for(target.input).serialize(request) or b"null"
        return await self._request(
            "POST", path, body=body, idempotency_key=idempotency_key, repeatable=idempotency_key is not None
        )

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        content_type: str = "application/json",
        idempotency_key: str | None = None,
        repeatable: bool,
    ) -> httpx.Response:
        headers = dict(self._headers)
        if body is not None:
            headers["content-type"] = content_type
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        attempt = 0
        while True:
            problem: IngressError
            try:
                response = await self._http.request(method, self.url + path, content=body, headers=headers)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # nothing was sent: always safe to repeat
                problem = IngressError(f"no connection to the ingress at {self.url}: {error}")
                safe = True
            except httpx.TransportError as error:
                problem = IngressError(f"{method} {path}: the connection broke before an answer came: {error!r}")
                safe = repeatable
            else:
                if response.is_success:
                    return response
                problem = _problem(response)
                safe = problem.source != "invocation" and response.status_code in _RETRIED_STATUS and repeatable
            if not safe or attempt >= self._retries:
                raise problem
            await asyncio.sleep(min(_LONGEST_PAUSE, 0.1 * 2**attempt))
            attempt += 1


def _path(target: Target[Any, Any], key: str | None) -> str:
    middle = "" if key is None else f"/{_segment(key)}"
    return f"/{_segment(target.service)}{middle}/{target.handler}"


def _segment(text: str) -> str:
    quoted = quote(text, safe="")
    # As they are, these two would be resolved before the request is sent, and reach another handler.
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


def _check_header(key: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise InvalidInput(
            f"idempotency key {key!r} can't be sent as a header; use printable ASCII, for example by quoting the rest",
            metadata={"field": "idempotency_key"},
        )
    return key


def _read(target: Target[Any, Any], response: httpx.Response) -> Any:
    serde = serde_for(target.output)
    try:
        return serde.deserialize(response.content)
    except ValidationError as error:
        name = getattr(target.output, "__qualname__", str(target.output))
        raise IngressError(
            f"{target}: the response does not fit {name}: {error}", status_code=response.status_code
        ) from error


def _problem(response: httpx.Response) -> IngressError:
    source = response.headers.get("x-restate-error-source")
    body: Any
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {"message": response.text}
    # A handler that ran out of attempts leaves a Python stack trace here; people get its first line.
    message = f"\n{body.get('message') or ''}".partition("\nTraceback")[0].strip() or response.reason_phrase
    facts = body.get("metadata")
    metadata = {str(name): str(value) for name, value in facts.items()} if isinstance(facts, dict) else {}
    return IngressError(message, status_code=response.status_code, source=source, metadata=metadata)
