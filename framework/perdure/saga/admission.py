"""How a saga gets into `Rollbacks`: the first request opens its rollback, and later ones join it.

A later request brings nothing new (somebody else waits for the outcome, or asks again since the answer is late), or
another run of the same saga: the workflow's key was used again after its retention, or two services share a prefix.
Its steps are undone as well, by themselves: see `perdure.saga.executions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import restate

from perdure._wake_ups import wake_up
from perdure.observability.logging import get_logger
from perdure.saga.dead_letters import dead_letter_of, send_dead_letter
from perdure.saga.executions import number_of, runs_of, with_another_run
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
class Taken:
    """A rollback after a request was taken.

    Args:
        saga: The saga.
        head: How far its rollback is.
        has_work: Whether there are steps that it did not have before.
        has_waiter: Whether somebody waits who did not before.
    """

    saga: StoredSaga
    head: RollbackProgress
    has_work: bool = False
    has_waiter: bool = False


async def take(
    ctx: restate.ObjectContext,
    request: RollbackRequest,
    known: StoredSaga | None,
    head: RollbackProgress | None,
    now: datetime,
) -> Taken:
    """Take a request: open the saga's rollback, or join it. Waits for nothing, so that no cancel comes between.

    Args:
        ctx: A context of the saga's rollback.
        request: The request.
        known: The saga, when its rollback is there already.
        head: How far that is.
        now: The time.
    """
    if known is None and await _was_forgotten(ctx, request):
        taken = await _recall(ctx, request, now)
    elif known is None or head is None:
        taken = await _open(ctx, request, now)
    elif _is_another_run(known, request):
        taken = await _append(ctx, known, head, request, now)
    else:
        taken = await _join(ctx, known, head, request)
    for run in request.runs:  # after the steps: a kill may come between
        await execution_marker(ctx, run).set(True)
    return taken


def _is_another_run(known: StoredSaga, request: RollbackRequest) -> bool:
    # Without an id, only what an orchestration itself hands over is known to be another run: it does so once.
    return not set(request.runs) <= set(known.runs) if request.runs else request.first_hand


async def _was_forgotten(ctx: restate.ObjectContext, request: RollbackRequest) -> bool:
    # A run's mark comes after its steps, and is all that is left when they were undone and then forgotten.
    return bool(request.runs) and all([await execution_marker(ctx, run).get() for run in request.runs])


async def _recall(ctx: restate.ObjectContext, request: RollbackRequest, now: datetime) -> Taken:
    """Answer for a run that was undone long ago, with nothing left to undo."""
    saga = StoredSaga.of(request.model_copy(update={"steps": []}))
    await saga_state(ctx).set(saga)
    head = RollbackProgress(started_at=now, updated_at=now, ended=[1]).with_waiter(request.waiter, 1)
    await rollback_progress_state(ctx).set(head)
    log.info("saga.rollback.recalled", saga=request.saga_id, reason=request.reason)
    return Taken(saga, head, has_waiter=request.waiter is not None)


async def _open(ctx: restate.ObjectContext, request: RollbackRequest, now: datetime) -> Taken:
    await open_marker(ctx).set(True)
    await _set_out(ctx, request, now)
    saga = StoredSaga.of(request)
    await saga_state(ctx).set(saga)
    head = RollbackProgress(started_at=now, updated_at=now).with_waiter(request.waiter, 1)
    await rollback_progress_state(ctx).set(
        head
    )  # last: killed before it, the rollback has not begun, and whoever asked asks again
    log.info("saga.rollback.started", saga=request.saga_id, steps=len(request.steps), reason=request.reason)
    return Taken(saga, head, has_work=True)


async def _append(
    ctx: restate.ObjectContext, known: StoredSaga, head: RollbackProgress, again: RollbackRequest, now: datetime
) -> Taken:
    """Add the steps of another run."""
    both, added = with_another_run(known, again)
    number = len(both.earlier) + 1
    if await open_marker(ctx).get() is None:  # an earlier version did not keep which runs have ended
        head = head.model_copy(update={"ended": list(range(1, number))})
    await open_marker(ctx).set(True)
    await _set_out(ctx, added, now)
    await saga_state(ctx).set(both)  # last, and steps and run in one entry: a kill can't come between
    log.warning("saga.rollback.again", saga=known.saga_id, steps=len(added.steps), reason=again.reason)
    return Taken(both, head.with_waiter(again.waiter, number), has_work=True)


async def _join(ctx: restate.ObjectContext, known: StoredSaga, head: RollbackProgress, again: RollbackRequest) -> Taken:
    """Let somebody else wait for the outcome."""
    number = number_of(known, again.runs)
    if again.waiter is None:
        return Taken(known, head)
    if again.service != (known if number is None else runs_of(known)[number - 1]).service:
        wake_up(ctx, again.waiter.awakeable)  # it reads the conflict
        return Taken(known, head)
    joined = head.with_waiter(again.waiter, number)
    if joined == head:
        return Taken(known, head)
    await rollback_progress_state(ctx).set(joined)
    return Taken(known, joined, has_waiter=True)


async def _set_out(ctx: restate.ObjectContext, request: RollbackRequest, now: datetime) -> None:
    """Write down where the rollback of each step of a request begins."""
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
