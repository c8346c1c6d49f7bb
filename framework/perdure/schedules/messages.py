"""Messages of the schedule services, and the targets that accept them."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from perdure._runtime.plain_text import Reason
from perdure.schedules.recurrence import ScheduledTarget, ScheduleSpec
from perdure.security.signed_actions import SignedAction
from perdure.security.user_names import UserName
from perdure.targets import KeyedTarget, Target

INDEX_KEY: Final = "all"
MAX_NAME_LENGTH: Final = 128
OVERDUE: Final = timedelta(minutes=1)


class ScheduleState(StrEnum):
    """State of a schedule; a ``FINISHED`` one has no further firing."""

    ACTIVE = "active"
    PAUSED = "paused"
    FINISHED = "finished"


class ScheduleAction(StrEnum):
    """Operator actions on schedules."""

    SET = "set"
    PAUSE = "pause"
    RESUME = "resume"
    TRIGGER = "trigger"
    REMOVE = "remove"


class RunCause(StrEnum):
    """Cause of a run: a firing on time, a late firing, or an operator action."""

    DUE = "due"
    CATCH_UP = "catch_up"
    TRIGGER = "trigger"


class RunState(StrEnum):
    """State of a run.

    ``NOT_STARTED``: the target could not be started, for example because its handler does not exist. ``UNKNOWN``: the
    target was started, but its result is not observed.
    """

    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NOT_STARTED = "not_started"
    UNKNOWN = "unknown"


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Output(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ScheduleActionRequest(_Input):
    """Request of an operator action.

    Args:
        actor: The operator, for the audit log.
        reason: The reason, for the audit log.
        signed_action: The signed action, see `sign_action`; required where operator actions must be signed.
    """

    actor: UserName
    reason: Reason = ""
    signed_action: SignedAction | None = None


class ScheduleRequest(ScheduleSpec, ScheduleActionRequest):
    """Request to create or replace a schedule, signed by `sign_setting`; setting an equal schedule changes nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def spec(self) -> ScheduleSpec:
        """The schedule without actor, reason and signature."""
        return ScheduleSpec.model_validate(self.model_dump(exclude=set(ScheduleActionRequest.model_fields)))


class ScheduleCommand(_Input):
    """Action of a handler on a schedule; unsigned, since it comes from inside the engine."""

    action: ScheduleAction
    actor: UserName
    reason: Reason = ""
    spec: ScheduleSpec | None = None


class ScheduledRun(_Output):
    """One run of a schedule.

    Args:
        id: The idempotency key of the run, ``{schedule}/{generation}/{planned time}``.
        planned: The planned time.
        cause: The cause of the run.
        state: The state of the run.
        started_at: The time at which the schedule fired.
        ended_at: The time at which the run ended; None while it is active.
        invocation_id: The invocation that the run started.
        error: The error of a run that failed or was not started.
    """

    id: str
    planned: datetime
    cause: RunCause
    state: RunState = RunState.STARTING
    started_at: datetime
    ended_at: datetime | None = None
    invocation_id: str | None = None
    error: str | None = None


class ScheduleCounts(_Output):
    """Numbers of runs and skipped firings since the schedule was created.

    Args:
        started: Runs that were started, including those whose start failed.
        succeeded: Runs that succeeded.
        failed: Runs that failed or could not be started.
        missed: Firings skipped because they were late.
        overlapped: Firings skipped because an earlier run was active.
    """

    started: int = 0
    succeeded: int = 0
    failed: int = 0
    missed: int = 0
    overlapped: int = 0


class ScheduleAuditEntry(_Output):
    """Audit entry of an action on a schedule.

    Args:
        number: The position in the audit log, from 1.
        at: The time of the action.
        actor: The operator or handler.
        action: The action.
        reason: The reason.
        signed_action: The verified signed action; None if the action was unsigned.
    """

    number: int
    at: datetime
    actor: str
    action: ScheduleAction
    reason: str = ""
    signed_action: SignedAction | None = None


class ScheduleStatus(_Output):
    """Status of a schedule.

    Args:
        name: The schedule's name.
        state: The state.
        spec: Timing, target and policies.
        generation: The number of times that the timing was restarted; firings of earlier generations are ignored.
        next_at: The next firing; None while the schedule is paused or finished. A time in the past means that the
            firing was lost, for example killed; ``resume`` schedules it again.
        counts: Numbers of runs and skipped firings.
        last_error: The error of the last failed run.
        active: The active runs.
        recent: The last ended runs, latest first.
        audit_log: The last audit entries, latest first.
        created_at: The time at which the schedule was first set.
        updated_at: The time of the last change.
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
        """Return whether the next firing is late: it was lost, or the schedule's service is down."""
        return self.next_at is not None and now - self.next_at > OVERDUE


class ScheduleListRequest(_Input):
    """Request to list schedules by name.

    Args:
        page: The page number, from 1.
        page_size: The number of schedules per page.
    """

    page: int = Field(default=1, ge=1)
    page_size: int = Field(default=50, ge=1, le=200)


class UnreadableSchedule(_Output):
    """A schedule whose status cannot be read, for example because its encryption key is missing.

    Args:
        name: The schedule.
        error: Why, and what to do.
    """

    name: str
    error: str


class SchedulePage(_Output):
    """Page of schedules, sorted by name.

    Args:
        items: The schedules of this page.
        unreadable: Schedules of this page that cannot be read.
        total: The number of schedules.
        page: The page number, from 1.
        pages: The number of pages.
    """

    items: list[ScheduleStatus]
    unreadable: list[UnreadableSchedule] = []
    total: int
    page: int
    pages: int


class Firing(_Output):
    """Firing that a schedule sends to itself; ignored unless it belongs to the current generation."""

    generation: int
    planned: datetime


class RunRequest(_Output):
    """Request to the dispatcher to start a run; the key of its target is resolved."""

    schedule: str
    run_id: str
    target: ScheduledTarget
    payload: JsonValue = None
    planned: datetime


class RunReport(_Output):
    """State of a run, as the dispatcher reports it to the schedule."""

    run_id: str
    state: RunState
    invocation_id: str | None = None
    error: str | None = None


set_target = KeyedTarget("Schedules", "set", ScheduleRequest, ScheduleStatus)
status_target = KeyedTarget("Schedules", "status", None, ScheduleStatus)
list_target = KeyedTarget("ScheduleIndex", "list", ScheduleListRequest, SchedulePage)
apply_target = KeyedTarget("Schedules", "apply", ScheduleCommand, ScheduleStatus)
fire_target = KeyedTarget("Schedules", "fire", Firing, None)
report_target = KeyedTarget("Schedules", "report", RunReport, None)
index_add_target = KeyedTarget("ScheduleIndex", "add", str, None)
index_remove_target = KeyedTarget("ScheduleIndex", "remove", str, None)
run_target = Target("ScheduleDispatcher", "run", RunRequest, None)
start_target = Target("ScheduleDispatcher", "start", RunRequest, str)


def action_target(action: ScheduleAction) -> KeyedTarget[ScheduleActionRequest, ScheduleStatus]:
    """Return the target of an action other than ``set``."""
    return KeyedTarget("Schedules", action.value, ScheduleActionRequest, ScheduleStatus)
