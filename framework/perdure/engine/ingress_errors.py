"""Errors of ingress responses: their class, and whether the engine has accepted the request.

The decision uses status, ``x-restate-error-source`` and the proxy's marker. The ingress sends its 4xx responses before
it passes a request on, so they are certain refusals; its 5xx responses have an unknown outcome.
"""

from __future__ import annotations

from typing import Any, Final

import httpx

from perdure._runtime.engine_messages import says_no_invocation, says_not_registered, says_workflow_started
from perdure.engine.proxy_responses import ProxyResponse, proxy_response
from perdure.errors import Acceptance, AlreadyStarted, IngressError, InvocationNotFound, NotReady, NotRegistered
from perdure.idempotency import KEY_IS_USED_ONCE

READS: Final = "perdure.reads"
"""Extension of a request that reads a result, although its method is POST."""

_NOT_READY: Final = 470


def is_read(request: httpx.Request) -> bool:
    """Return whether a request reads a result instead of starting something."""
    return request.method == "GET" or bool(request.extensions.get(READS))


def response_error(response: httpx.Response) -> IngressError:
    """Return the error of a response that is not a success."""
    source = response.headers.get("x-restate-error-source")
    body = _body(response, source)
    # The message of an exhausted handler contains a stack trace.
    message = f"\n{body.get('message') or ''}".partition("\nTraceback")[0].strip() or response.reason_phrase
    fields = body.get("metadata")
    metadata = {str(name): str(value) for name, value in fields.items()} if isinstance(fields, dict) else {}
    status, reads = response.status_code, is_read(response.request)
    kind, acceptance = IngressError, Acceptance.UNKNOWN
    if (proxy := proxy_response(response)) is not None:
        if proxy in (ProxyResponse.NOT_SENT, ProxyResponse.UNKNOWN_OUTCOME):
            status = 0  # the engine did not respond, as if the connection to it had failed
        if proxy is not ProxyResponse.UNKNOWN_OUTCOME and not reads:
            acceptance = Acceptance.NOT_ACCEPTED
    elif source == "invocation":
        acceptance = Acceptance.ACCEPTED
        if status == 409 and not metadata and says_workflow_started(message):
            message = f"{message}: {KEY_IS_USED_ONCE}. Attach with IngressClient.attach(handler, key=...)"
            kind, source = AlreadyStarted, "ingress"
    elif source == "ingress":
        kind, acceptance = _refusal(status, message, reads=reads)
    return kind(message, status_code=status, source=source, metadata=metadata, acceptance=acceptance)


def may_be_unknown(error: IngressError) -> bool:
    """Return whether the error of an attach may mean that the invocation does not exist.

    The ingress marks it as an error of the invocation. Errors of Perdure's handlers have metadata.
    """
    return error.status_code == 404 and error.source == "invocation" and not error.metadata


def _refusal(status: int, message: str, *, reads: bool) -> tuple[type[IngressError], Acceptance]:
    """Return the class of an error of the ingress, and the acceptance: for a read, that of the invocation."""
    if reads:
        if status == _NOT_READY:
            return NotReady, Acceptance.ACCEPTED
        if status == 404 and says_no_invocation(message):
            return InvocationNotFound, Acceptance.UNKNOWN
        is_missing = status == 404 and says_not_registered(message)
        return NotRegistered if is_missing else IngressError, Acceptance.UNKNOWN
    if 400 <= status < 500:
        return NotRegistered if status == 404 else IngressError, Acceptance.NOT_ACCEPTED
    return IngressError, Acceptance.UNKNOWN


def _body(response: httpx.Response, source: str | None) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        return body
    if source is not None:
        return {"message": response.text}
    # Errors of the ingress are JSON and name their source.
    request = f"{response.request.method} {response.request.url}"
    text = response.text.strip().partition("\n")[0] or response.reason_phrase
    return {"message": f"{request}: the response is not by an ingress: {response.status_code} {text[:100]}"}
