"""Waiters of a rollback: waking them when an execution has been rolled back, and telling them how that ended."""

from __future__ import annotations

from typing import Any

import restate

from perdure._wake_ups import wake_up
from perdure.errors import Conflict
from perdure.saga.executions import number_of, report_of, runs_of
from perdure.saga.messages import ReportAnswer, ReportQuery, RollbackReport
from perdure.saga.schema import (
    RollbackProgress,
    StepProgress,
    StoredSaga,
    all_step_progress,
    rollback_progress_state,
    saga_state,
)


async def wake_waiters(ctx: restate.ObjectContext, saga: StoredSaga, head: RollbackProgress) -> RollbackProgress:
    """Store a head without the waiters whose execution has ended, and wake these; return the head.

    It is stored first, since a waiter that is awake reads it.

    Args:
        ctx: A context of the saga's rollback.
        saga: The saga.
        head: How far its rollback is.
    """
    woken = {each for each in head.waiters if _has_ended(saga, head, head.waits_for.get(each))}
    left = head.without_waiters(woken)
    await rollback_progress_state(ctx).set(left)
    for each in woken:
        wake_up(ctx, head.waiters[each])
    return left


async def report_for(ctx: Any, query: ReportQuery) -> ReportAnswer:
    """Tell how an execution's rollback ended, if it has.

    Args:
        ctx: A context of the saga's rollback.
        query: The execution.

    Raises:
        Conflict: The saga's id belongs to another service. Terminal, 409.
    """
    saga, head = await saga_state(ctx).get(), await rollback_progress_state(ctx).get()
    if saga is None or head is None:
        return ReportAnswer(wait=query.wait)
    number = number_of(saga, query.runs)
    if number is None and query.runs:  # its steps are on their way
        return ReportAnswer(wait=query.wait)
    service = (saga if number is None else runs_of(saga)[number - 1]).service
    if service != query.service:
        raise Conflict(
            f"the saga id '{saga.saga_id}' belongs to {service}; {query.service} needs another saga_prefix",
            metadata={"saga": saga.saga_id},
        )
    if not _has_ended(saga, head, number):
        return ReportAnswer(wait=query.wait)
    return ReportAnswer(wait=query.wait, report=_report(saga, number, await all_step_progress(ctx, saga)))


def _has_ended(saga: StoredSaga, head: RollbackProgress, number: int | None) -> bool:
    """Tell if an execution has been rolled back as far as it can be; without a number, if all have."""
    numbers = range(1, len(runs_of(saga)) + 1) if number is None else [number]
    return set(numbers) <= set(head.ended)


def _report(saga: StoredSaga, number: int | None, progress: dict[int, StepProgress]) -> RollbackReport:
    runs = runs_of(saga)
    return report_of(runs if number is None else [runs[number - 1]], progress)
