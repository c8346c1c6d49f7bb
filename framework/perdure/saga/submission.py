"""Submission of a saga execution to `Rollbacks`, and the wait for the outcome.

An execution gets a random ID when its record is submitted. The ID is part of the name of a state entry or promise of
the orchestration, which expire with the workflow's retention. The engine offers no such ID: a workflow key that is
reused after the retention has the same invocation ID, seed and awakeables. By the ID, a repeated request differs from
another execution, so a request can be repeated safely.

A rollback can be killed before it has recorded anything. A waiter therefore repeats its request. Before each
repetition it asks the saga service for the report and waits for the answer. Nothing is therefore repeated while that
service is down, and the repetition contains no steps once they are recorded.
"""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import cast
from uuid import uuid4

import restate
from pydantic import BaseModel

from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import any_done, is_own_cancel
from perdure._wake_ups import WakeUpBackoff, new_awakeable, new_wait_id
from perdure.clients import ObjectClient
from perdure.errors import Cancelled, Conflict, TerminalError
from perdure.observability.tracing import traceparent
from perdure.retry import RetryPolicy
from perdure.runs import RunConfig, run_with_retry
from perdure.saga.messages import RollbackReport, begin_target, read_report
from perdure.saga.progress import read_execution, read_rollback
from perdure.saga.schema import EXECUTION_PROMISE, RollbackRequest, Waiter, execution_id, execution_key
from perdure.saga.status import RollbackState
from perdure.signals import get_internal_signal

OUTCOME_POLLS = RetryPolicy(
    initial_interval=timedelta(seconds=30), max_interval=timedelta(minutes=10), max_attempts=None
)
"""Waits for the end of a rollback before the request is repeated."""
RECORD_POLLS = RetryPolicy(
    initial_interval=timedelta(milliseconds=50), max_interval=timedelta(seconds=5), max_attempts=None
)
"""Waits until a rollback is recorded before the request is repeated. They pass only while the saga service answers."""


class ExecutionIds(BaseModel):
    """Values that differ between attempts and must therefore be journaled."""

    execution: str
    wait: str
    trace: str | None


async def make_execution_ids(ctx: restate.Context, saga_id: str) -> tuple[ExecutionIds, Cancelled | None]:
    """Return the journaled IDs of a failed execution, and the first cancel that arrived meanwhile.

    A cancelled invocation may wait for this run, because it ends by itself.
    """
    cancel: Cancelled | None = None
    while True:
        try:
            return await run_with_retry(ctx, "submit rollback", new_execution_ids, saga_id), cancel
        except Cancelled as error:
            cancel = cancel or error


async def new_execution_ids(saga_id: str) -> ExecutionIds:
    """Return new random IDs."""
    return ExecutionIds(execution=await _new_execution(saga_id), wait=await new_wait_id(), trace=traceparent())


async def _new_execution(saga_id: str) -> str:
    return execution_id(saga_id, uuid4().hex[:16])


async def external_execution(ctx: restate.WorkflowSharedContext, saga_id: str) -> tuple[str, bool]:
    """Return the ID of an execution that is rolled back from outside, and whether it is new."""
    known = await read_execution(ctx)
    is_new = known is None
    if known is None:
        made = await run_with_retry(cast("restate.Context", ctx), RunConfig("execution id"), _new_execution, saga_id)
        is_new = await _resolve(ctx, EXECUTION_PROMISE, made)
        known = made if is_new else await get_internal_signal(ctx, EXECUTION_PROMISE, str).peek() or made
    await _resolve(ctx, execution_key(known), "")  # its name is for SQL, since the ID above may be encrypted
    return known, is_new


async def _resolve(ctx: restate.WorkflowSharedContext, promise: str, value: str) -> bool:
    """Resolve a promise; return False if it was resolved before."""
    try:
        await get_internal_signal(ctx, promise, str).resolve(value)
    except TerminalError as error:
        if is_own_cancel(error) or error.status_code != Conflict.default_status:
            raise
        return False
    return True


async def submit_rollback(ctx: restate.Context, request: RollbackRequest) -> None:
    """Start a saga's rollback; it does not depend on this invocation."""
    await ObjectClient(ctx, begin_target, request.saga_id).send(request)


async def submit_and_confirm(ctx: restate.WorkflowSharedContext, request: RollbackRequest) -> None:
    """Start a saga's rollback, and wait until it is recorded."""
    caller = cast("restate.Context", ctx)
    for attempt in itertools.count(1):
        await submit_rollback(caller, request)
        await caller.sleep(scaled(RECORD_POLLS.delay_after(attempt)), "the rollback is recorded")
        # Without a time limit: while the saga service is down, each repetition would leave two invocations behind.
        if await read_rollback(ctx, request.execution, limit=None) is not None:
            return


async def await_rollback(
    ctx: restate.Context, request: RollbackRequest, wait: str, timeout: timedelta | None = None
) -> RollbackReport:
    """Start a saga's rollback, and wait for its end.

    The awakeable only wakes this invocation; the report is read from `ExecutionRollbacks`.

    Args:
        ctx: The context.
        request: The saga.
        wait: A random ID from `perdure._wake_ups.make_wait_id`.
        timeout: How long to wait; None for no limit. Then the report has the outcome ``RUNNING``.

    Raises:
        Cancelled: This invocation was cancelled; the rollback continues.
    """
    backoff = WakeUpBackoff(ctx, f"the rollback of saga '{request.saga_id}'")
    attempt, is_recorded = 1, False
    joining = request.model_copy(update={"steps": [], "completed": {}, "running": {}, "only_joins": True})
    # Not scaled: the caller's connection and the work of a rollback take real time.
    timers = [] if timeout is None else [ctx.sleep(timeout, "the wait for the rollback")]
    while True:
        awakeable, woken = new_awakeable(ctx)
        waiter = Waiter(invocation=ctx.request().id, awakeable=awakeable)
        await submit_rollback(ctx, (joining if is_recorded else request).model_copy(update={"waiter": waiter}))
        resubmit = ctx.sleep(scaled(OUTCOME_POLLS.delay_after(attempt)), "before the rollback is requested again")
        done = await any_done([woken, resubmit, *timers], "the rollback")
        answer = await ObjectClient(ctx, read_report, request.execution).call(wait)
        if answer.report is not None and answer.wait == wait:
            return answer.report
        is_recorded = answer.is_recorded and answer.wait == wait
        if any(timer in done for timer in timers):
            return RollbackReport(outcome=RollbackState.RUNNING)
        if woken in done:
            await backoff.pause()
        else:
            attempt += 1
