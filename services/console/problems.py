"""What can go wrong for a person at the console: a status, a code for programs, a sentence for people."""

from __future__ import annotations

from pydantic import BaseModel

from perdure.errors import PerdureError


class Problem(BaseModel):
    """An error, as the API answers it.

    Args:
        code: For programs, for example ``role_needed``.
        message: For people.
        role: The role that is needed, with ``role_needed``.
    """

    code: str
    message: str
    role: str | None = None


class ConsoleError(PerdureError):
    """A request that is answered with a problem.

    Args:
        status: The HTTP status.
        code: For programs.
        message: For people: what happened, and what to do.
        role: The role that is needed.
        retry_after: Seconds after which another try makes sense.
    """

    def __init__(
        self, status: int, code: str, message: str, *, role: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.problem = Problem(code=code, message=message, role=role)
        self.retry_after = retry_after


def not_found(message: str) -> ConsoleError:
    """Return the error for something that isn't there."""
    return ConsoleError(404, "not_found", message)


def invalid(message: str) -> ConsoleError:
    """Return the error for a request that is wrong in itself."""
    return ConsoleError(400, "invalid_input", message)
