"""Status of an orchestration, derived from its record, so that a successful execution writes nothing extra."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import restate
from pydantic import JsonValue

from perdure._runtime.sdk import handler_info
from perdure._runtime.waiting import done_before, is_own_cancel
from perdure.clients import ObjectClient
from perdure.errors import Conflict, NotFound, TerminalError, error_code
from perdure.saga.messages import RollbackStatus, rollback_status
from perdure.saga.retried import retries_for_status
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

ROLLBACK_STATUS_TIMEOUT = timedelta(seconds=2)
"""Time limit of the query to `Rollbacks`; a status must be available while the saga service is down."""

_OPEN_PHASES = (SagaPhase.NOT_STARTED, SagaPhase.RUNNING, SagaPhase.COMPENSATING)
_PHASE_OF = {
    RollbackState.RUNNING: SagaPhase.COMPENSATING,
    RollbackState.ROLLED_BACK: SagaPhase.ROLLED_BACK,
    RollbackState.FINISHED_FORWARD: SagaPhase.COMPLETED,
    RollbackState.NEEDS_ATTENTION: SagaPhase.NEEDS_ATTENTION,
}


async def read_status(ctx: restate.WorkflowSharedContext, saga_id: str, expected_steps: int | None) -> StatusData:
    """Return an orchestration's status; without ``expected_steps``, the progress is 0 or 1."""
    status, rollback = await _recorded_status(ctx, saga_id, expected_steps)
    if status.is_complete:
        return status
    # The result needs no journal entry: no durable operation follows that would depend on it.
    compensations = [step.compensation_invocation_id for step in rollback.steps] if rollback else []
    retried = await retries_for_status(handler_info(ctx).service, ctx.key(), compensations)
    return status.model_copy(update={"metadata": {**status.metadata, "retried": retried}}) if retried else status


async def _recorded_status(
    ctx: restate.WorkflowSharedContext, saga_id: str, expected_steps: int | None
) -> tuple[StatusData, RollbackStatus | None]:
    """Return the status that follows from the record and the rollback, and the rollback."""
    records = [record for record in await read_steps(ctx) if not record.pivot]
    closed = await _read(ctx, CLOSED_KEY, ClosedSaga)
    failed = await _read(ctx, FAILED_KEY, str)
    status = status_of_record(_names(records, ended=closed is not None), closed, failed, expected_steps)
    rolls_back = failed is not None or (closed is not None and closed.rolls_back) or await has_external_rollback(ctx)
    if not rolls_back:
        return status, None
    rollback = await read_rollback(ctx, saga_id)
    ids = [name.removeprefix(EXECUTION_PREFIX) for name in await ctx.state_keys() if name.startswith(EXECUTION_PREFIX)]
    if rollback is not None and not rollback.has(ids):  # the rollback of an earlier execution under this key
        rollback = None
    return add_rollback(status, rollback), rollback


async def has_external_rollback(ctx: restate.WorkflowSharedContext) -> bool:
    """Return whether a rollback was requested from outside, which the orchestration itself does not record."""
    return await get_internal_signal(ctx, ROLLBACK_PROMISE, bool).peek() is True


async def mark_external_rollback(ctx: restate.WorkflowSharedContext) -> None:
    """Record a rollback from outside in a promise, because a shared handler cannot write state."""
    if await has_external_rollback(ctx):
        return
    try:
        await get_internal_signal(ctx, ROLLBACK_PROMISE, bool).resolve(True)
    except TerminalError as error:
        if is_own_cancel(error) or error.status_code != Conflict.default_status:
            raise  # a conflict means that a concurrent request marked it


async def read_steps(ctx: restate.WorkflowSharedContext) -> list[StepRecord]:
    """Return the recorded steps of an orchestration, in order."""
    names = sorted(name for name in await ctx.state_keys() if name.startswith(STEP_PREFIX))
    records = [await _read(ctx, name, StepRecord) for name in names]
    return [record for record in records if record is not None]


async def read_rollback(ctx: restate.WorkflowSharedContext, saga_id: str) -> RollbackStatus | None:
    """Return the rollback of a saga, or None if it has not begun or the saga service does not respond in time."""
    caller = cast("restate.Context", ctx)
    query = ObjectClient(caller, rollback_status, saga_id).call_async()
    limit = caller.sleep(ROLLBACK_STATUS_TIMEOUT, "time limit of the rollback status")
    if not await done_before(query.future, limit, "the query of the rollback status"):
        return None
    try:
        return await query
    except TerminalError as error:
        if error_code(error) == NotFound.code:
            return None
        raise


def _names(records: list[StepRecord], *, ended: bool) -> list[str]:
    """Return the names of the steps in order; the steps of a running parallel group are joined to one name."""
    last = records[-1].group if records and not ended else None
    if last is None:
        return [record.step for record in records]
    together = [record.step for record in records if record.group == last]
    return [*(record.step for record in records if record.group != last), " + ".join(together)]


def add_rollback(status: StatusData, rollback: RollbackStatus | None) -> StatusData:
    """Return an orchestration's status with that of its rollback, which is None before its start."""
    if rollback is None:
        if status.phase in (SagaPhase.NOT_STARTED, SagaPhase.RUNNING):
            return status
        return status.model_copy(update={"metadata": {**status.metadata, "rollback": "pending"}})
    facts: dict[str, JsonValue] = {
        "rollback": rollback.status.value,
        "steps": {step.step: step.state.value for step in rollback.steps},
    }
    retried: dict[str, JsonValue] = {
        step.step: {
            "failed_attempts": step.attempts,
            "error": step.error,
            "next_attempt_at": None if step.next_attempt_at is None else step.next_attempt_at.isoformat(),
        }
        for step in rollback.steps
        if step.is_retried
    }
    if retried:
        facts["retried_compensations"] = retried
    changes: dict[str, Any] = {"metadata": {**status.metadata, **facts}, "updated_at": rollback.updated_at}
    if status.phase != SagaPhase.CANCELLED:
        changes["phase"] = _PHASE_OF[rollback.status].value
        changes["error"] = status.error or rollback.reason
        changes["is_complete"] = status.is_complete or rollback.status is not RollbackState.RUNNING
    return status.model_copy(update=changes)


def status_of_record(
    steps: list[str], closed: ClosedSaga | None, failed: str | None, expected_steps: int | None
) -> StatusData:
    """Return the status that follows from the record.

    A step is recorded before its action starts. The last one is therefore current, and those before it are completed.
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
        is_complete=phase not in _OPEN_PHASES,
        error=failed if closed is None else closed.error,
    )


async def _read(ctx: restate.WorkflowSharedContext, key: str, type_: type[Any]) -> Any:
    return await ReadOnlyState(ctx, key, type_).get()
