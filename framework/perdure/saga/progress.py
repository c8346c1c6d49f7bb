"""How far an orchestration is, read from what it records anyway, so that its status costs the happy path nothing."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any, cast

import restate
from pydantic import BaseModel, ConfigDict, JsonValue

from perdure._runtime.waiting import done_before, is_own_cancel
from perdure.clients import ObjectClient
from perdure.errors import Conflict, NotFound, TerminalError
from perdure.saga.messages import RollbackStatus, rollback_status
from perdure.saga.policy import RUN_PREFIX, Outcome, StepRecord
from perdure.signals import get_internal_signal
from perdure.state import ReadOnlyState
from perdure.status import StatusData

CLOSED_KEY = "saga/closed"
FAILED_KEY = "saga/failed"
_STEP_PREFIX = "saga/0"


UNDO_PROMISE = "saga/undo"
ANSWER_WITHIN = timedelta(seconds=2)
"""How long a status waits for the rollback: an orchestration tells how it is even while the saga service is down."""


class Phase(StrEnum):
    """Where an orchestration stands."""

    NOT_STARTED = "not_started"
    RUNNING = "running"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ROLLED_BACK = "rolled_back"
    NEEDS_ATTENTION = "needs_attention"


_PHASE_OF = {
    Outcome.RUNNING: Phase.COMPENSATING,
    Outcome.ROLLED_BACK: Phase.ROLLED_BACK,
    Outcome.FINISHED_FORWARD: Phase.COMPLETED,
    Outcome.NEEDS_ATTENTION: Phase.NEEDS_ATTENTION,
}


class Closed(BaseModel):
    """What an orchestration leaves behind when it ends.

    Args:
        phase: How it ended.
        error: Why it failed.
        rolls_back: Whether there was something to undo, so that there is a rollback to look at.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    phase: Phase
    error: str | None = None
    rolls_back: bool = False


async def read_status(ctx: restate.WorkflowSharedContext, saga_id: str, expected_steps: int | None) -> StatusData:
    """Return an orchestration's status.

    Args:
        ctx: A shared handler's context.
        saga_id: The orchestration's saga.
        expected_steps: How many steps the orchestration has when all goes well; without it, progress is 0 or 1.
    """
    records = [record for record in await read_steps(ctx) if not record.pivot]
    closed = await _read(ctx, CLOSED_KEY, Closed)
    failed = await _read(ctx, FAILED_KEY, str)
    status = describe(_names(records, ended=closed is not None), closed, failed, expected_steps)
    rolls_back = failed is not None or (closed is not None and closed.rolls_back) or await undone_from_outside(ctx)
    if not rolls_back:
        return status
    rollback = await read_rollback(ctx, saga_id)
    runs = [name.removeprefix(RUN_PREFIX) for name in await ctx.state_keys() if name.startswith(RUN_PREFIX)]
    if rollback is not None and not rollback.has(runs):  # it is that of an earlier run under this key
        rollback = None
    return describe_rollback(status, rollback)


async def undone_from_outside(ctx: restate.WorkflowSharedContext) -> bool:
    """Tell if somebody else asked for this saga's rollback: a killed orchestration does not know it, nor a child.

    Args:
        ctx: A shared handler's context.
    """
    return await get_internal_signal(ctx, UNDO_PROMISE, bool).peek() is True


async def mark_undone_from_outside(ctx: restate.WorkflowSharedContext) -> None:
    """Remember that somebody else asked for this saga's rollback. A shared handler can't write state, but a promise.

    Args:
        ctx: A shared handler's context.
    """
    if await undone_from_outside(ctx):
        return
    try:
        await get_internal_signal(ctx, UNDO_PROMISE, bool).resolve(True)
    except TerminalError as error:
        if is_own_cancel(error) or error.status_code != Conflict.default_status:
            raise  # a conflict is that somebody else has just said so


async def read_steps(ctx: restate.WorkflowSharedContext) -> list[StepRecord]:
    """Return the recorded steps of an orchestration, in order.

    Args:
        ctx: A shared handler's context.
    """
    names = sorted(name for name in await ctx.state_keys() if name.startswith(_STEP_PREFIX))
    records = [await _read(ctx, name, StepRecord) for name in names]
    return [record for record in records if record is not None]


async def read_rollback(ctx: restate.WorkflowSharedContext, saga_id: str) -> RollbackStatus | None:
    """Return the rollback of a saga, or None when it has not begun, or the saga service does not answer in time.

    Args:
        ctx: A shared handler's context.
        saga_id: The saga.
    """
    caller = cast("restate.Context", ctx)
    asked = ObjectClient(caller, rollback_status, saga_id).call_async()
    late = caller.sleep(ANSWER_WITHIN, "the rollback answers")
    if not await done_before(asked.future, late, "a question to the rollback"):
        return None
    try:
        return await asked
    except TerminalError as error:
        if error.status_code == NotFound.default_status:  # it is on its way
            return None
        raise


def _names(records: list[StepRecord], *, ended: bool) -> list[str]:
    """Return the names of the steps in order; those of a group that runs last are current together, under one name."""
    last = records[-1].group if records and not ended else None
    if last is None:
        return [record.step for record in records]
    together = [record.step for record in records if record.group == last]
    return [*(record.step for record in records if record.group != last), " + ".join(together)]


def describe_rollback(status: StatusData, rollback: RollbackStatus | None) -> StatusData:
    """Add to an orchestration's status how its rollback stands, which goes on after the orchestration has ended.

    Args:
        status: What the orchestration itself recorded.
        rollback: Its rollback; None when that has not begun yet.
    """
    if rollback is None:
        if status.phase in (Phase.NOT_STARTED, Phase.RUNNING):
            return status
        return status.model_copy(update={"metadata": {**status.metadata, "rollback": "pending"}})
    facts: dict[str, JsonValue] = {
        "rollback": rollback.status.value,
        "steps": {step.step: step.state.value for step in rollback.steps},
    }
    changes: dict[str, Any] = {"metadata": {**status.metadata, **facts}, "updated_at": rollback.updated_at}
    if status.phase != Phase.CANCELLED:  # that stays, whatever its rollback comes to
        changes["phase"] = _PHASE_OF[rollback.status].value
        changes["error"] = status.error or rollback.reason
        changes["is_complete"] = status.is_complete or rollback.status is not Outcome.RUNNING
    return status.model_copy(update=changes)


def describe(steps: list[str], closed: Closed | None, failed: str | None, expected_steps: int | None) -> StatusData:
    """Return the status that the recorded facts add up to.

    A step is recorded before its action starts, so the last one is current and those before it are completed.

    Args:
        steps: The names of the recorded steps, in order.
        closed: How the orchestration ended; None while it runs.
        failed: The error that is being rolled back.
        expected_steps: How many steps there are when all goes well.
    """
    done = closed is not None and closed.phase is Phase.COMPLETED
    completed = steps if done else steps[:-1]
    share = min(1.0, len(completed) / expected_steps) if expected_steps else 0.0
    if closed is not None:
        phase = closed.phase
    elif failed is not None:
        phase = Phase.COMPENSATING
    else:
        phase = Phase.RUNNING if steps else Phase.NOT_STARTED
    return StatusData(
        phase=phase.value,
        progress=1.0 if done else share,
        current_step=None if done or not steps else steps[-1],
        completed_steps=completed,
        is_complete=closed is not None,
        error=failed if closed is None else closed.error,
    )


async def _read(ctx: restate.WorkflowSharedContext, key: str, type_: type[Any]) -> Any:
    return await ReadOnlyState(ctx, key, type_).get()
