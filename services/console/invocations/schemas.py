"""Messages of the invocations API."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from perdure._runtime.plain_text import Reason

ActionName = Literal["resume", "cancel", "kill"]


class Invocation(BaseModel):
    """An invocation.

    Args:
        id: Its ID.
        target: Service, key and handler.
        status: The engine's status: paused, backing-off, running, suspended, …
        created_at: When it was created.
        modified_at: When it last changed.
        retry_count: The number of attempts.
        next_retry_at: When it is retried.
        reason: The last error.
    """

    id: str
    target: str
    status: str
    created_at: datetime
    modified_at: datetime | None = None
    retry_count: int | None = None
    next_retry_at: datetime | None = None
    reason: str | None = None


class InvocationList(BaseModel):
    """Invocations, oldest first."""

    items: list[Invocation]


class InvocationActionInput(BaseModel):
    """The parameters of an action on an invocation."""

    model_config = ConfigDict(extra="forbid")

    reason: Reason = ""
