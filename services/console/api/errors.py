"""Errors of the API as OpenAPI knows them."""

from __future__ import annotations

from typing import Any, Final

from services.console.problems import Problem

_TEXTS: Final = {
    400: "The request is wrong, or the engine refused it",
    401: "Nobody is signed in",
    403: "The role that is needed is missing, or the service refused this person",
    404: "There is no such thing",
    409: "It contradicts how things stand",
    422: "A field of the request does not fit",
    429: "Too many",
    502: "A service failed",
    503: "The engine does not answer, the service is not deployed, or too many people are signing in",
    504: "No answer came in time; an act may still be done",
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors that a route may answer, for its documentation.

    Args:
        *statuses: Their HTTP statuses.
    """
    return {status: {"model": Problem, "description": _TEXTS[status]} for status in statuses}


OPEN: Final = answers(400, 403, 422)
"""Of a route that anybody may take, and that does not ask the engine."""

OWN: Final = answers(400, 401, 403, 404, 409, 422, 429, 503)
"""Of a route that asks the console's own database only."""

ENGINE: Final = answers(400, 401, 403, 404, 409, 422, 429, 502, 503, 504)
"""Of a route that asks the engine."""
