"""Requests to the engine's ingress: their paths, when they are repeated, and what their answers mean.

A failed request is sent again only when that is safe: the ingress says with ``x-restate-error-source`` whether the
handler ended with the error (final) or the ingress itself had trouble. Without an answer, a request is repeated only
when it carries an idempotency key, which reaches the same invocation again, or when asking twice is the same as asking
once: submitting a workflow, attaching, answering a signal. Calling a workflow's main handler is not repeated: the
second call of a key is a conflict, so its answer would tell nothing about the first. Submit it, and attach.
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

from perdure._runtime.places import OutputSource, ValueCodec
from perdure._runtime.serdes import serde_for
from perdure._runtime.tls import tls_context
from perdure.engine.proxy_answers import ProxyAnswer, proxy_answer
from perdure.errors import IngressError, InvalidInput, NotReady, UnreadableValue
from perdure.idempotency import check_idempotency_key
from perdure.retry import RetryPolicy
from perdure.targets import Target

_RETRIED_STATUS = frozenset({429, 502, 503, 504})
_CONNECT = 5.0
_NOT_READY = 470
_INVOCATION_ID = "x-restate-id"
# What a segment of a path may hold as it is. The ingress does not decode an idempotency key that stands in a path.
_PLAIN = "!$&'()*+,;=:@"


class IngressRequests:
    """Sends requests to one ingress.

    Args:
        url: The ingress.
        headers: Sent with every request.
        timeout: How long one request may take; None for as long as it takes.
        max_attempts: Attempts of a request that is safe to repeat.
        http: A client to use instead of an own one; it is not closed.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout: timedelta | None,
        max_attempts: int,
        http: httpx.AsyncClient | None,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = headers
        self._retry = RetryPolicy(
            initial_interval=timedelta(milliseconds=100), max_interval=timedelta(seconds=5), max_attempts=max_attempts
        )
        self._owned = http is None
        self._http = http or httpx.AsyncClient(
            verify=tls_context(),
            timeout=httpx.Timeout(None if timeout is None else timeout.total_seconds(), connect=_CONNECT),
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
        """Send a request, and again as long as that is safe and of use.

        Args:
            method: The HTTP method.
            path: The path, quoted.
            body: The body, if it has one.
            content_type: The body's type.
            headers: Sent along with the client's own.
            timeout: How long it may take each time; the client's own timeout by default.
            repeatable: Sending it twice is the same as sending it once.

        Raises:
            IngressError: There was no answer, or one that tells of a failure.
        """
        sent = {**(headers or {}), **self._headers}
        if body is not None:
            sent["content-type"] = content_type
        options: dict[str, Any] = {}
        if timeout is not None:
            options["timeout"] = httpx.Timeout(timeout.total_seconds(), connect=_CONNECT)
        attempt = 0
        while True:
            problem: IngressError
            cause: httpx.TransportError | None = None
            try:
                response = await self._http.request(method, self.url + path, content=body, headers=sent, **options)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # nothing was sent: always safe to repeat
                cause = error
                problem = IngressError(
                    f"no connection to the ingress at {self.url}: start the engine, or set PERDURE_INGRESS_URL"
                )
                safe = True
            except httpx.UnsupportedProtocol as error:
                raise IngressError(f"the ingress's address '{self.url}' is none: it begins with http://") from error
            except httpx.TimeoutException as error:
                cause = error
                problem = IngressError(
                    f"{method} {path}: the ingress at {self.url} did not answer in time ({type(error).__name__})"
                )
                safe = repeatable
            except httpx.TransportError as error:
                cause = error
                problem = IngressError(f"{method} {path}: the connection broke before an answer came: {error!r}")
                safe = repeatable
            else:
                if response.is_success:
                    return response
                problem = _problem(response)
                retried = problem.source != "invocation" and response.status_code in _RETRIED_STATUS
                safe = (retried and repeatable) or proxy_answer(response) is ProxyAnswer.NOT_SENT
            attempt += 1
            if not safe or not self._retry.permits(attempt):
                raise problem from cause
            await asyncio.sleep(self._retry.delay_after(attempt).total_seconds())


def path_of(target: Target[Any, Any], key: str | None) -> str:
    """Return the path of a handler."""
    middle = "" if key is None else f"/{segment(key)}"
    return f"/{segment(target.service)}{middle}/{target.handler}"


def path_of_invocation(
    target: Target[Any, Any], key: str | None, idempotency_key: str | None, invocation_id: str | None
) -> str:
    """Return the path of an invocation that is named by its id, its idempotency key, or a workflow's key."""
    if invocation_id is not None:
        return f"/restate/invocation/{segment(invocation_id)}"
    if idempotency_key is not None:
        return f"/restate/invocation{path_of(target, key)}/{_literal(check_idempotency_key(idempotency_key))}"
    if key is not None:
        return f"/restate/workflow/{segment(target.service)}/{segment(key)}"
    raise InvalidInput(
        f"{target}: which invocation? Give its invocation_id, its idempotency_key, or a workflow's key",
        metadata={"field": "invocation_id"},
    )


def segment(text: str) -> str:
    """Return a text as one segment of a path, whatever it holds."""
    quoted = quote(text, safe="")
    # As they are, these two would be resolved before the request is sent, and reach another handler.
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


def _literal(idempotency_key: str) -> str:
    if quote(idempotency_key, safe=_PLAIN) != idempotency_key or idempotency_key in (".", ".."):
        raise InvalidInput(
            f"idempotency key {idempotency_key!r}: the ingress finds an invocation only by a key of letters, digits "
            f"and -._~{_PLAIN}; attach with the invocation_id that send returned",
            metadata={"field": "idempotency_key"},
        )
    return idempotency_key


def check_header(value: str, what: str) -> str:
    """Return a value that can be a header's, or refuse it."""
    if not (value.isascii() and value.isprintable()):
        raise InvalidInput(
            f"{what} {value!r} can't be sent as a header; use printable ASCII, for example by quoting the rest",
            metadata={"field": what.replace(" ", "_") if what == "idempotency key" else "headers"},
        )
    return value


def opened(response: httpx.Response, codec: ValueCodec, source: OutputSource) -> bytes:
    """Return the output that an answer holds.

    Args:
        response: The answer.
        codec: Opens the output.
        source: What is known about the invocation. Without an ID, the one that the answer names is taken.

    Raises:
        UnreadableValue: The output is not one of this invocation, or the answer does not say whose it is.
    """
    invocation = source.invocation or response.headers.get(_INVOCATION_ID, "")
    if not invocation:
        raise UnreadableValue(
            f"{source}: the answer has no header {_INVOCATION_ID}, so its output cannot be checked: let the proxy in "
            "front of the ingress pass this header on"
        )
    return codec.open_output(response.content, dataclasses.replace(source, invocation=invocation))


def read(
    target: Target[Any, Any],
    response: httpx.Response,
    codec: ValueCodec | None,
    *,
    key: str | None = None,
    invocation_id: str | None = None,
) -> Any:
    """Return the result that an answer holds, in the handler's type.

    Args:
        target: The handler.
        response: The answer.
        codec: Opens the output; None when the journal is in clear.
        key: The key of the virtual object or workflow; None when it is not known.
        invocation_id: The invocation that was asked for; None for the one that the answer names.

    Raises:
        UnreadableValue: The output is not one of this invocation.
        IngressError: The result does not fit the type.
    """
    serde = serde_for(target.output)
    if codec is None:
        content = response.content
    else:
        content = opened(response, codec, OutputSource(invocation_id or "", target.service, key, target.handler))
    try:
        return serde.deserialize(content)
    except ValidationError as error:
        name = getattr(target.output, "__qualname__", str(target.output))
        raise IngressError(
            f"{target}: the response does not fit {name}: {error}", status_code=response.status_code
        ) from error


def _problem(response: httpx.Response) -> IngressError:
    source = response.headers.get("x-restate-error-source")
    proxy = proxy_answer(response)
    body: Any
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {"message": response.text}
        if source is None:  # the ingress says where an error comes from, and says it in JSON
            asked = f"{response.request.method} {response.request.url}"
            text = response.text.strip().partition("\n")[0] or response.reason_phrase
            body["message"] = f"{asked} is not answered by an ingress: {response.status_code} {text[:100]}"
    # A handler that ran out of attempts leaves a Python stack trace here; people get its first line.
    message = f"\n{body.get('message') or ''}".partition("\nTraceback")[0].strip() or response.reason_phrase
    facts = body.get("metadata")
    metadata = {str(name): str(value) for name, value in facts.items()} if isinstance(facts, dict) else {}
    kind = NotReady if response.status_code == _NOT_READY and source == "ingress" else IngressError
    # No answer of the engine's came, as if the connection to it had failed.
    unanswered = proxy in (ProxyAnswer.NOT_SENT, ProxyAnswer.UNKNOWN_OUTCOME)
    return kind(message, status_code=0 if unanswered else response.status_code, source=source, metadata=metadata)
