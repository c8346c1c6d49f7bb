"""Status of an orchestration, derived from its record, so that a successful execution writes nothing extra."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, cast

import restate
from pydantic import JsonValue, TypeAdapter

from perdure._runtime.admin_url import admin_url
from perdure._runtime.sdk import handler_info
from perdure._runtime.waiting import done_before
from perdure.clients import ObjectClient
from perdure.engine.admin import AdminClient
from perdure.errors import EngineError, NotFound, TerminalError, error_code
from perdure.observability.logging import get_logger
from perdure.saga.messages import ExecutionStatus, execution_status
from perdure.saga.retried import ADMIN_TIMEOUT, retries_for_status
from perdure.saga.schema import (
    CLOSED_PREFIX,
    EXECUTION_PREFIX,
    EXECUTION_PROMISE,
    FAILED_KEY,
    HELD_MARK_PREFIX,
    STEP_PREFIX,
    ClosedSaga,
    HeldMark,
    StepRecord,
    times_sql,
)
from perdure.saga.status import RollbackState, SagaPhase
from perdure.signals import get_internal_signal
from perdure.state import ReadOnlyState
from perdure.status import StatusData

ROLLBACK_STATUS_TIMEOUT = timedelta(seconds=2)
"""Time limit of the query to `ExecutionRollbacks`; a status must be available while the saga service is down."""

log = get_logger("perdure.saga")

_datetime = TypeAdapter(datetime)
_OPEN_PHASES = (SagaPhase.NOT_STARTED, SagaPhase.RUNNING, SagaPhase.COMPENSATING)
_PHASE_OF = {
    RollbackState.RUNNING: SagaPhase.COMPENSATING,
    RollbackState.ROLLED_BACK: SagaPhase.ROLLED_BACK,
    RollbackState.FINISHED_FORWARD: SagaPhase.COMPLETED,
    RollbackState.NEEDS_ATTENTION: SagaPhase.NEEDS_ATTENTION,
}


async def read_status(ctx: restate.WorkflowSharedContext, expected_steps: int | None) -> StatusData:
    """Return an orchestration's status; without ``expected_steps``, the progress is 0 or 1."""
    steps = await read_steps(ctx)
    records = [record for record in steps if not record.pivot]
    closed = await read_closed(ctx)
    failed = await _read(ctx, FAILED_KEY, str)
    execution = await read_execution(ctx)
    status = status_of_record(_names(records, ended=closed is not None), closed, failed, expected_steps)
    rollback = None
    if failed is not None or execution is not None:
        rollback = None if execution is None else await read_rollback(ctx, execution)
        status = add_rollback(status, rollback)
    # The facts of the engine need no journal entry: no durable operation follows that would depend on them.
    times = await _read_times(steps[0].invocation) if steps else {}
    status = status.model_copy(update={**times, "updated_at": status.updated_at or times.get("updated_at")})
    if status.is_complete:
        return status
    if status.phase == SagaPhase.RUNNING and (held := await _read_held(ctx)):
        status = status.model_copy(update={"metadata": {**status.metadata, "held": held}})
    compensations = [step.compensation_invocation_id for step in rollback.steps] if rollback else []
    retried = await retries_for_status(handler_info(ctx).service, ctx.key(), compensations)
    return status.model_copy(update={"metadata": {**status.metadata, "retried": retried}}) if retried else status


async def _read_held(ctx: restate.WorkflowSharedContext) -> dict[str, JsonValue]:
    """Return the held steps of a running orchestration, by name."""
    names = sorted(name for name in await ctx.state_keys() if name.startswith(HELD_MARK_PREFIX))
    marks = [await _read(ctx, name, HeldMark) for name in names]
    return {
        mark.step: {"id": mark.id, "error": mark.error, "until": mark.until.isoformat()}
        for mark in marks
        if mark is not None
    }


async def _read_times(invocation: str) -> dict[str, datetime]:
    """Return the times of an orchestration from the engine's journal; none without the admin API."""
    url = admin_url()
    if url is None:
        return {}
    try:
        async with asyncio.timeout(ADMIN_TIMEOUT), AdminClient(url) as admin:
            rows = await admin.query(times_sql(invocation))
    except (EngineError, TimeoutError) as error:
        log.warning("saga.status.times_unknown", reason=str(error))
        return {}
    return {row["field"]: _datetime.validate_python(row["at"]) for row in rows if row.get("at") is not None}


async def read_closed(ctx: restate.WorkflowSharedContext) -> ClosedSaga | None:
    """Return the result that an orchestration stored; None if it has not ended by itself."""
    names = [name for name in await ctx.state_keys() if name.startswith(CLOSED_PREFIX)]
    return await _read(ctx, names[0], ClosedSaga) if names else None


async def read_execution(ctx: restate.WorkflowSharedContext) -> str | None:
    """Return the ID of an execution that was submitted for rollback, by itself or from outside."""
    for name in await ctx.state_keys():
        if name.startswith(EXECUTION_PREFIX):
            return name.removeprefix(EXECUTION_PREFIX)
    return await get_internal_signal(ctx, EXECUTION_PROMISE, str).peek()


async def read_steps(ctx: restate.WorkflowSharedContext) -> list[StepRecord]:
    """Return the recorded steps of an orchestration, in order."""
    names = sorted(name for name in await ctx.state_keys() if name.startswith(STEP_PREFIX))
    records = [await _read(ctx, name, StepRecord) for name in names]
    return [record for record in records if record is not None]


async def read_rollback(
    ctx: restate.WorkflowSharedContext, execution: str, limit: timedelta | None = ROLLBACK_STATUS_TIMEOUT
) -> ExecutionStatus | None:
    """Return the rollback of an execution; None if it has not begun or the saga service does not respond in time."""
    caller = cast("restate.Context", ctx)
    query = ObjectClient(caller, execution_status, execution).call_async()
    if limit is not None:
        timer = caller.sleep(limit, "time limit of the rollback status")
        if not await done_before(query.future, timer, "the query of the rollback status"):
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


def add_rollback(status: StatusData, rollback: ExecutionStatus | None) -> StatusData:
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
