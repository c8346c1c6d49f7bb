"""What goes to and from schedules, and the targets that take it."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from perdure._runtime.plain_text import Reason
from perdure.schedules.recurrence import ScheduledTarget, ScheduleSpec
from perdure.security.signed_actions import SignedAction
from perdure.security.user_names import UserName
from perdure.targets import Target

INDEX_KEY: Final = "all"
MAX_NAME_LENGTH: Final = 128
OVERDUE: Final = timedelta(minutes=1)


class ScheduleState(StrEnum):
    """Where a schedule stands: ``FINISHED`` has no firing left."""

    ACTIVE = "active"
    PAUSED = "paused"
    FINISHED = "finished"


class ScheduleAction(StrEnum):
    """What can be done to a schedule."""

    SET = "set"
    PAUSE = "pause"
    RESUME = "resume"
    TRIGGER = "trigger"
    REMOVE = "remove"


class RunCause(StrEnum):
    """Why a run was started: it was due, it was due and missed, or somebody asked for it."""

    DUE = "due"
    CATCH_UP = "catch_up"
    TRIGGER = "trigger"


class RunState(StrEnum):
    """Where a run stands.

    ``NOT_STARTED`` says that the target could not be started, as when its handler is gone; ``UNKNOWN`` that it was, but
    is not watched any more.
    """

    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NOT_STARTED = "not_started"
    UNKNOWN = "unknown"


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ScheduleRequest(ScheduleSpec):
    """Creates or replaces a schedule; one that is equal to what is there changes nothing.

    Args:
        actor: Who sets it; written into the audit log.
        reason: Why.
        proof: The actor's signature, see `perdure.schedules.signatures`; needed where acts must be signed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    actor: UserName
    reason: Reason = ""
    proof: SignedAction | None = None

    @property
    def spec(self) -> ScheduleSpec:
        """The schedule alone."""
        return ScheduleSpec.model_validate(self.model_dump(exclude={"actor", "reason", "proof"}))


class ScheduleActionRequest(_Input):
    """What somebody does to a schedule.

    Args:
        actor: Who.
        reason: Why.
        proof: The actor's signature, see `perdure.schedules.signatures`; needed where acts must be signed.
    """

    actor: UserName
    reason: Reason = ""
    proof: SignedAction | None = None


class ScheduleOrder(_Input):
    """What a handler does to a schedule, from inside the engine, where nobody has to prove who they are.

    Args:
        act: What.
        actor: The handler, or for whom it acts.
        reason: Why.
        spec: With ``set``: the schedule.
    """

    act: ScheduleAction
    actor: UserName
    reason: Reason = ""
    spec: ScheduleSpec | None = None


class ScheduledRun(_Kept):
    """One run of a schedule.

    Args:
        id: The idempotency key under which its target was started: ``{schedule}/{generation}/{planned time}``.
        planned: When it was due.
        cause: Why it was started.
        state: Where it stands.
        begun_at: When the schedule fired.
        ended_at: When it ended, as far as that is known.
        invocation_id: The invocation that it started.
        error: Why it failed, or could not be started.
    """

    id: str
    planned: datetime
    cause: RunCause
    state: RunState = RunState.STARTING
    begun_at: datetime
    ended_at: datetime | None = None
    invocation_id: str | None = None
    error: str | None = None


class ScheduleCounts(_Kept):
    """What came of a schedule's firings since it was first set.

    Args:
        started: Runs that were started, or tried to.
        succeeded: Runs that ended well.
        failed: Runs that ended with an error, or could not be started.
        missed: Firings left out for being late.
        overlapped: Firings left out since the run before was still going.
    """

    started: int = 0
    succeeded: int = 0
    failed: int = 0
    missed: int = 0
    overlapped: int = 0


class ScheduleAuditEntry(_Kept):
    """One act on a schedule.

    Args:
        number: 1 for the first.
        at: When.
        actor: Who.
        act: What.
        reason: Why.
        proof: The signature that proved who it was; None for an act that was taken unsigned.
    """

    number: int
    at: datetime
    actor: str
    act: ScheduleAction
    reason: str = ""
    proof: SignedAction | None = None


class ScheduleStatus(_Kept):
    """A schedule, as it is shown.

    Args:
        name: Its name.
        state: Where it stands.
        spec: What it does, and when.
        generation: How often its timing was begun anew; a firing of an earlier generation does nothing.
        next_at: When it fires next; None while it is paused, and when it never does again. One that lies in the past
            says that the firing was lost, as when somebody killed it: ``resume`` begins anew.
        counts: What came of its firings.
        last_error: What the last failed run said.
        active: Runs that are going on.
        recent: Runs that have ended, the latest first.
        audit_log: Who did what to it, the latest first.
        created_at: When it was first set.
        updated_at: When anything about it last changed.
    """

    name: str
    state: ScheduleState
    spec: ScheduleSpec
    generation: int
    next_at: datetime | None
    counts: ScheduleCounts
    last_error: str | None
    active: list[ScheduledRun]
    recent: list[ScheduledRun]
    audit_log: list[ScheduleAuditEntry]
    created_at: datetime
    updated_at: datetime

    def is_overdue(self, now: datetime) -> bool:
        """Tell if a firing should have come long ago: it was lost, or the schedule's service is down.

        Args:
            now: What the clock says.
        """
        return self.next_at is not None and now - self.next_at > OVERDUE


class ScheduleListRequest(_Input):
    """Which schedules to list, in the order of their names.

    Args:
        page: 1 for the first page.
        page_size: How many a page.
    """

    page: int = Field(default=1, ge=1)
    page_size: int = Field(default=50, ge=1, le=200)


class SchedulePage(_Kept):
    """Schedules, in the order of their names.

    Args:
        items: Those of this page.
        total: How many there are.
        page: Which page this is.
        pages: How many pages there are.
    """

    items: list[ScheduleStatus]
    total: int
    page: int
    pages: int


class Firing(_Kept):
    """A firing, as a schedule sends it to itself.

    Args:
        generation: Of which generation; another than the current does nothing.
        planned: When it is due.
    """

    generation: int
    planned: datetime


class RunOrder(_Kept):
    """A run, as the dispatcher is told of it.

    Args:
        schedule: The schedule's name.
        run_id: The run.
        target: What to start, with its key filled in.
        payload: What it is given.
        planned: When it was due.
    """

    schedule: str
    run_id: str
    target: ScheduledTarget
    payload: JsonValue = None
    planned: datetime


class RunReport(_Kept):
    """What the dispatcher tells a schedule about a run.

    Args:
        run_id: The run.
        state: Where it stands now.
        invocation_id: The invocation that it started.
        error: Why it failed, or could not be started.
    """

    run_id: str
    state: RunState
    invocation_id: str | None = None
    error: str | None = None


_NOTHING: Final = type(None)

set_target: Target[ScheduleRequest, ScheduleStatus] = Target("Schedules", "set", ScheduleRequest, ScheduleStatus)
status_target: Target[None, ScheduleStatus] = Target("Schedules", "status", _NOTHING, ScheduleStatus)
list_target: Target[ScheduleListRequest, SchedulePage] = Target(
    "ScheduleIndex", "list", ScheduleListRequest, SchedulePage
)
order_target: Target[ScheduleOrder, ScheduleStatus] = Target("Schedules", "order", ScheduleOrder, ScheduleStatus)
fire_target: Target[Firing, None] = Target("Schedules", "fire", Firing, _NOTHING)
report_target: Target[RunReport, None] = Target("Schedules", "report", RunReport, _NOTHING)
put_target: Target[str, None] = Target("ScheduleIndex", "put", str, _NOTHING)
drop_target: Target[str, None] = Target("ScheduleIndex", "drop", str, _NOTHING)

run_target: Target[RunOrder, None] = Target("ScheduleDispatcher", "run", RunOrder, _NOTHING)
start_target: Target[RunOrder, str] = Target("ScheduleDispatcher", "start", RunOrder, str)


def action_target(act: ScheduleAction) -> Target[ScheduleActionRequest, ScheduleStatus]:
    """Return the target of an act other than ``set``.

    Args:
        act: The act; its name is the handler's.
    """
    return Target("Schedules", act.value, ScheduleActionRequest, ScheduleStatus)
