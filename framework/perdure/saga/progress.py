"""How far an orchestration is, read from what it records anyway, so that its status costs the happy path nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import restate
from pydantic import JsonValue

from perdure._runtime.waiting import done_before, is_own_cancel
from perdure.clients import ObjectClient
from perdure.errors import Conflict, NotFound, TerminalError
from perdure.saga.messages import RollbackStatus, rollback_status
from perdure.saga.schema import (
    CLOSED_KEY,
    EXECUTION_PREFIX,
    FAILED_KEY,
    ROLLBACK_PROMISE,
    STEP_PREFIX,
    ClosedSaga,
    StepRecord,
)
from perdure.saga.status import RollbackState, SagaPhase
from perdure.signals import get_internal_signal
from perdure.state import ReadOnlyState
from perdure.status import StatusData

ANSWER_WITHIN = timedelta(seconds=2)
"""How long a status waits for the rollback: an orchestration tells how it is even while the saga service is down."""


_PHASE_OF = {
    RollbackState.RUNNING: SagaPhase.COMPENSATING,
    RollbackState.ROLLED_BACK: SagaPhase.ROLLED_BACK,
    RollbackState.FINISHED_FORWARD: SagaPhase.COMPLETED,
    RollbackState.NEEDS_ATTENTION: SagaPhase.NEEDS_ATTENTION,
}


async def read_status(ctx: restate.WorkflowSharedContext, saga_id: str, expected_steps: int | None) -> StatusData:
    """Return an orchestration's status.

    Args:
        ctx: A shared handler's context.
        saga_id: The orchestration's saga.
        expected_steps: How many steps the orchestration has when all goes well; without it, progress is 0 or 1.
    """
    records = [record for record in await read_steps(ctx) if not record.pivot]
    closed = await _read(ctx, CLOSED_KEY, ClosedSaga)
    failed = await _read(ctx, FAILED_KEY, str)
    status = describe(_names(records, ended=closed is not None), closed, failed, expected_steps)
    rolls_back = failed is not None or (closed is not None and closed.rolls_back) or await undone_from_outside(ctx)
    if not rolls_back:
        return status
    rollback = await read_rollback(ctx, saga_id)
    runs = [name.removeprefix(EXECUTION_PREFIX) for name in await ctx.state_keys() if name.startswith(EXECUTION_PREFIX)]
    if rollback is not None and not rollback.has(runs):  # it is that of an earlier run under this key
        rollback = None
    return describe_rollback(status, rollback)


async def undone_from_outside(ctx: restate.WorkflowSharedContext) -> bool:
    """Tell if somebody else asked for this saga's rollback: a killed orchestration does not know it, nor a child.

    Args:
        ctx: A shared handler's context.
    """
    return await get_internal_signal(ctx, ROLLBACK_PROMISE, bool).peek() is True


async def mark_undone_from_outside(ctx: restate.WorkflowSharedContext) -> None:
    """Remember that somebody else asked for this saga's rollback. A shared handler can't write state, but a promise.

    Args:
        ctx: A shared handler's context.
    """
    if await undone_from_outside(ctx):
        return
    try:
        await get_internal_signal(ctx, ROLLBACK_PROMISE, bool).resolve(True)
    except TerminalError as error:
        if is_own_cancel(error) or error.status_code != Conflict.default_status:
            raise  # a conflict is that somebody else has just said so


async def read_steps(ctx: restate.WorkflowSharedContext) -> list[StepRecord]:
    """Return the recorded steps of an orchestration, in order.

    Args:
        ctx: A shared handler's context.
    """
    names = sorted(name for name in await ctx.state_keys() if name.startswith(STEP_PREFIX))
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
        if status.phase in (SagaPhase.NOT_STARTED, SagaPhase.RUNNING):
            return status
        return status.model_copy(update={"metadata": {**status.metadata, "rollback": "pending"}})
    facts: dict[str, JsonValue] = {
        "rollback": rollback.status.value,
        "steps": {step.step: step.state.value for step in rollback.steps},
    }
    changes: dict[str, Any] = {"metadata": {**status.metadata, **facts}, "updated_at": rollback.updated_at}
    if status.phase != SagaPhase.CANCELLED:  # that stays, whatever its rollback comes to
        changes["phase"] = _PHASE_OF[rollback.status].value
        changes["error"] = status.error or rollback.reason
        changes["is_complete"] = status.is_complete or rollback.status is not RollbackState.RUNNING
    return status.model_copy(update=changes)


def describe(steps: list[str], closed: ClosedSaga | None, failed: str | None, expected_steps: int | None) -> StatusData:
    """Return the status that the recorded facts add up to.

    A step is recorded before its action starts, so the last one is current and those before it are completed.

    Args:
        steps: The names of the recorded steps, in order.
        closed: How the orchestration ended; None while it runs.
        failed: The error that is being rolled back.
        expected_steps: How many steps there are when all goes well.
    """
    done = closed is not None and closed.phase is SagaPhase.COMPLETED
    completed = steps if done else steps[:-1]
    share = min(1.0, len(completed) / expected_steps) if expected_steps else 0.0
    if closed is not None:
        phase = closed.phase
    elif failed is not None:
        phase = SagaPhase.COMPENSATING
    else:
        phase = SagaPhase.RUNNING if steps else SagaPhase.NOT_STARTED
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
