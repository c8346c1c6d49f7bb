"""Waiters of a rollback: wake them when an execution has been rolled back, and report the outcome."""

from __future__ import annotations

from typing import Any

import restate

from perdure._wake_ups import wake_up
from perdure.errors import Conflict
from perdure.saga.executions import executions_of, number_of, report_of
from perdure.saga.messages import ReportAnswer, ReportQuery, RollbackReport
from perdure.saga.schema import (
    RollbackProgress,
    StepProgress,
    StoredSaga,
    all_step_progress,
    rollback_progress_state,
    saga_state,
)


async def wake_waiters(ctx: restate.ObjectContext, saga: StoredSaga, progress: RollbackProgress) -> RollbackProgress:
    """Wake the waiters of ended executions, and return the progress without them.

    The progress is stored first, because a woken waiter reads it.
    """
    woken = {waiter for waiter in progress.waiters if _has_ended(saga, progress, progress.waits_for.get(waiter))}
    remaining = progress.without_waiters(woken)
    await rollback_progress_state(ctx).set(remaining)
    for waiter in woken:
        wake_up(ctx, progress.waiters[waiter])
    return remaining


async def report_for(ctx: Any, query: ReportQuery) -> ReportAnswer:
    """Return the report of an execution's rollback, once it has ended.

    Raises:
        Conflict: The saga ID belongs to another service. Terminal, 409.
    """
    saga, progress = await saga_state(ctx).get(), await rollback_progress_state(ctx).get()
    if saga is None or progress is None:
        return ReportAnswer(wait=query.wait)
    number = number_of(saga, query.execution_ids)
    if number is None and query.execution_ids:  # its request has not arrived yet
        return ReportAnswer(wait=query.wait)
    service = (saga if number is None else executions_of(saga)[number - 1]).service
    if service != query.service:
        raise Conflict(
            f"the saga ID '{saga.saga_id}' belongs to {service}: give {query.service} another saga_prefix",
            metadata={"saga": saga.saga_id},
        )
    if not _has_ended(saga, progress, number):
        return ReportAnswer(wait=query.wait)
    return ReportAnswer(wait=query.wait, report=_report(saga, number, await all_step_progress(ctx, saga)))


def _has_ended(saga: StoredSaga, progress: RollbackProgress, number: int | None) -> bool:
    """Return whether the rollback of an execution has ended; without a number, of all executions."""
    numbers = range(1, len(executions_of(saga)) + 1) if number is None else [number]
    return set(numbers) <= set(progress.ended)


def _report(saga: StoredSaga, number: int | None, progress: dict[int, StepProgress]) -> RollbackReport:
    executions = executions_of(saga)
    return report_of(executions if number is None else [executions[number - 1]], progress)
