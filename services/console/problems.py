"""Errors that the console answers with: an HTTP status, a code for programs, a message for users."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from perdure.errors import PerdureError


class Problem(BaseModel):
    """The body of an error response.

    Args:
        code: For programs, for example ``role_needed``.
        message: For users.
        role: The missing role, with ``role_needed``.
    """

    code: str
    message: str
    role: str | None = None


class ConsoleError(PerdureError):
    """A request that fails with a problem; `retry_after` is in seconds."""

    def __init__(
        self, status: int, code: str, message: str, *, role: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.problem = Problem(code=code, message=message, role=role)
        self.retry_after = retry_after
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}


def not_found(message: str) -> ConsoleError:
    """Return a 404."""
    return ConsoleError(404, "not_found", message)


def invalid(message: str) -> ConsoleError:
    """Return a 400."""
    return ConsoleError(400, "invalid_input", message)


_DESCRIPTIONS: Final = {
    400: "Invalid request, or rejected by the engine",
    401: "Not authenticated",
    403: "Missing role, or rejected by the service",
    404: "Not found",
    409: "Conflicts with the current state",
    422: "Invalid field",
    429: "Too many requests",
    502: "A service failed",
    503: "The engine or the database is unavailable, the service is not deployed, or too many sign-ins are waiting",
    504: "Timeout; an action may still be performed",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI documentation of the errors of a route."""
    return {status: {"model": Problem, "description": _DESCRIPTIONS[status]} for status in statuses}


PUBLIC_ERRORS: Final = error_responses(400, 403, 422)
"""For routes without authentication."""

DATABASE_ERRORS: Final = error_responses(400, 401, 403, 404, 409, 422, 429, 503)
"""For routes that use only the console's database."""

ENGINE_ERRORS: Final = error_responses(400, 401, 403, 404, 409, 422, 429, 502, 503, 504)
"""For routes that call the engine."""
