"""How the engine proxy marks answers of its own, so that a client never takes one for the engine's."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import httpx

__all__ = ["PROXY_HEADER", "ProxyResponse", "proxy_response"]

PROXY_HEADER: Final = "x-perdure-proxy"
"""Says in an answer that it is the proxy's own, and which one: a `ProxyResponse`."""


class ProxyResponse(StrEnum):
    """Why the proxy answers in place of the engine."""

    REFUSED = "refused"
    """The request breaks a rule. It was not sent to the engine."""
    NOT_SENT = "not-sent"
    """The engine took no connection. The request was not sent."""
    UNKNOWN_OUTCOME = "unknown-outcome"
    """The connection to the engine broke before its answer. The request may or may not have been started."""


def proxy_response(response: httpx.Response) -> ProxyResponse | None:
    """Return what the proxy says, None for an answer of the engine's.

    Args:
        response: The answer.
    """
    said = response.headers.get(PROXY_HEADER)
    return ProxyResponse(said) if said in set(ProxyResponse) else None
