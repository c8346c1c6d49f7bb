"""Messages of the schedules API."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from perdure._runtime.plain_text import Reason
from perdure.schedules.messages import ScheduleStatus, UnreadableSchedule
from perdure.schedules.signatures import schedule_digest

ActionName = Literal["pause", "resume", "trigger", "remove"]


class Schedule(ScheduleStatus):
    """A schedule. An action names the digest of its content, so it fails if the schedule has changed."""

    digest: str

    @classmethod
    def of(cls, status: ScheduleStatus) -> Self:
        """Return a schedule with its digest."""
        return cls(**dict(status), digest=schedule_digest(status.spec, status.generation))


class SchedulePage(BaseModel):
    """A page of schedules, by name."""

    items: list[Schedule]
    unreadable: list[UnreadableSchedule] = []
    total: int
    page: int
    pages: int


class ScheduleActionInput(BaseModel):
    """The parameters of an action on a schedule.

    Args:
        reason: The reason.
        digest: `digest` of the schedule as shown. The action fails if the schedule has changed since.
    """

    model_config = ConfigDict(extra="forbid")

    reason: Reason = ""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
