"""Marker of the engine proxy's own responses, which clients must distinguish from those of the engine."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import httpx

PROXY_HEADER: Final = "x-perdure-proxy"
"""The header with the `ProxyResponse` of the proxy's own responses."""


class ProxyResponse(StrEnum):
    """Reason for a response of the proxy."""

    REFUSED = "refused"
    """The request violates a rule and was not sent to the engine."""
    NOT_SENT = "not-sent"
    """The engine accepts no connection. The request was not sent."""
    UNKNOWN_OUTCOME = "unknown-outcome"
    """The connection to the engine broke. The request may or may not have been started."""


def proxy_response(response: httpx.Response) -> ProxyResponse | None:
    """Return the reason of a proxy's response, or None for a response of the engine."""
    reason = response.headers.get(PROXY_HEADER)
    return ProxyResponse(reason) if reason in set(ProxyResponse) else None
