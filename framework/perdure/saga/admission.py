"""Admission of requests to `Rollbacks`: the first request of a saga opens its rollback, and later ones join it.

A later request either repeats an earlier one, perhaps with another waiter, or brings another execution of the saga: the
workflow's key was reused after its retention, or two services share a prefix. See `perdure.saga.executions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import restate

from perdure._wake_ups import wake_up
from perdure.observability.logging import get_logger
from perdure.saga.dead_letters import dead_letter_of, send_dead_letter
from perdure.saga.executions import append_execution, executions_of, number_of
from perdure.saga.policy import initial_progress
from perdure.saga.schema import (
    RollbackProgress,
    RollbackRequest,
    StoredSaga,
    execution_marker,
    open_marker,
    rollback_progress_state,
    saga_state,
    step_progress_state,
)
from perdure.saga.status import CompensationState

log = get_logger("perdure.saga")


@dataclass(frozen=True)
class Admission:
    """A rollback after the admission of a request.

    Args:
        saga: The saga.
        progress: The state of its rollback.
        has_work: Whether the request added steps.
        has_waiter: Whether the request added a waiter.
    """

    saga: StoredSaga
    progress: RollbackProgress
    has_work: bool = False
    has_waiter: bool = False


async def admit(
    ctx: restate.ObjectContext,
    request: RollbackRequest,
    known: StoredSaga | None,
    progress: RollbackProgress | None,
    now: datetime,
) -> Admission:
    """Open a saga's rollback or join it. It never waits, so that a cancel cannot interrupt it."""
    if known is None and await _was_purged(ctx, request):
        admission = await _admit_purged(ctx, request, now)
    elif known is None or progress is None:
        admission = await _open(ctx, request, now)
    elif _is_another_execution(known, request):
        admission = await _append(ctx, known, progress, request, now)
    else:
        admission = await _join(ctx, known, progress, request)
    for execution in request.execution_ids:  # after the steps, in case of a kill in between
        await execution_marker(ctx, execution).set(True)
    return admission


def _is_another_execution(known: StoredSaga, request: RollbackRequest) -> bool:
    # Without an ID, only a first-hand request is a new execution: an orchestration sends one such request.
    return not set(request.execution_ids) <= set(known.execution_ids) if request.execution_ids else request.first_hand


async def _was_purged(ctx: restate.ObjectContext, request: RollbackRequest) -> bool:
    # The mark of an execution is written after its steps, and remains after a purge.
    return bool(request.execution_ids) and all(
        [await execution_marker(ctx, execution).get() for execution in request.execution_ids]
    )


async def _admit_purged(ctx: restate.ObjectContext, request: RollbackRequest, now: datetime) -> Admission:
    """Open the rollback of an execution that was rolled back and purged, without steps."""
    saga = StoredSaga.of(request.model_copy(update={"steps": []}))
    await saga_state(ctx).set(saga)
    progress = RollbackProgress(started_at=now, updated_at=now, ended=[1]).with_waiter(request.waiter, 1)
    await rollback_progress_state(ctx).set(progress)
    log.info("saga.rollback.already_purged", saga=request.saga_id, reason=request.reason)
    return Admission(saga, progress, has_waiter=request.waiter is not None)


async def _open(ctx: restate.ObjectContext, request: RollbackRequest, now: datetime) -> Admission:
    await open_marker(ctx).set(True)
    await _store_initial_progress(ctx, request, now)
    saga = StoredSaga.of(request)
    await saga_state(ctx).set(saga)
    progress = RollbackProgress(started_at=now, updated_at=now).with_waiter(request.waiter, 1)
    await rollback_progress_state(ctx).set(progress)  # last: after a kill before it, the requester repeats the request
    log.info("saga.rollback.started", saga=request.saga_id, steps=len(request.steps), reason=request.reason)
    return Admission(saga, progress, has_work=True)


async def _append(
    ctx: restate.ObjectContext, known: StoredSaga, progress: RollbackProgress, request: RollbackRequest, now: datetime
) -> Admission:
    """Add another execution."""
    saga, added = append_execution(known, request)
    number = len(saga.earlier) + 1
    await open_marker(ctx).set(True)
    await _store_initial_progress(ctx, added, now)
    await saga_state(ctx).set(saga)  # last and in one entry, in case of a kill in between
    log.warning("saga.rollback.execution_added", saga=known.saga_id, steps=len(added.steps), reason=request.reason)
    return Admission(saga, progress.with_waiter(request.waiter, number), has_work=True)


async def _join(
    ctx: restate.ObjectContext, known: StoredSaga, progress: RollbackProgress, request: RollbackRequest
) -> Admission:
    """Add a waiter."""
    if request.waiter is None:
        return Admission(known, progress)
    number = number_of(known, request.execution_ids)
    if request.service != (known if number is None else executions_of(known)[number - 1]).service:
        wake_up(ctx, request.waiter.awakeable)  # the waiter then reads the conflict
        return Admission(known, progress)
    joined = progress.with_waiter(request.waiter, number)
    if joined == progress:
        return Admission(known, progress)
    await rollback_progress_state(ctx).set(joined)
    return Admission(known, joined, has_waiter=True)


async def _store_initial_progress(ctx: restate.ObjectContext, request: RollbackRequest, now: datetime) -> None:
    """Store the initial progress of the steps of a request."""
    progress = initial_progress(
        request.steps,
        request.config,
        completed=request.completed,
        running=request.running,
        reason=request.reason,
    )
    for step in request.steps:
        await step_progress_state(ctx, step.position).set(progress[step.position])
        if progress[step.position].state is CompensationState.DEAD_LETTER:
            await send_dead_letter(ctx, dead_letter_of(request, step, progress[step.position], now))
