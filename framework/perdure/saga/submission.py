"""Submission of a saga execution to `Rollbacks`, and the wait for the outcome.

An execution gets a random ID when its record is submitted, and stores it in its state or in a promise, which expire
with the workflow's retention. The engine offers no such ID: a workflow key that is reused after the retention has the
same invocation ID, seed and awakeables. By the ID, `Rollbacks` tells a repeated request from another execution, so a
request can be repeated safely.

A rollback can be killed before it has recorded anything. A waiter therefore repeats its request.
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
from perdure.errors import Cancelled, TerminalError
from perdure.observability.tracing import traceparent
from perdure.retry import RetryPolicy
from perdure.runs import RunConfig, run_with_retry
from perdure.saga.messages import ReportQuery, RollbackReport, begin_target, read_report
from perdure.saga.progress import has_external_rollback, read_rollback
from perdure.saga.schema import EXECUTION_PREFIX, EXECUTION_PROMISE, RollbackRequest, Waiter
from perdure.saga.status import RollbackState
from perdure.signals import get_internal_signal

OUTCOME_POLLS = RetryPolicy(
    initial_interval=timedelta(seconds=30), max_interval=timedelta(minutes=10), max_attempts=None
)
"""Waits for the end of a rollback before the request is repeated."""
RECORD_POLLS = RetryPolicy(
    initial_interval=timedelta(milliseconds=50), max_interval=timedelta(minutes=10), max_attempts=None
)
"""Waits until a rollback is recorded before the request is repeated."""


class ExecutionIds(BaseModel):
    """Values that differ between attempts and must therefore be journaled."""

    execution: str
    wait: str
    trace: str | None


async def make_execution_ids(ctx: restate.Context) -> tuple[ExecutionIds, Cancelled | None]:
    """Return the journaled IDs of a failed execution, and the first cancel that arrived meanwhile.

    A cancelled invocation may wait for this run, because it ends by itself.
    """
    cancel: Cancelled | None = None
    while True:
        try:
            return await run_with_retry(ctx, "submit rollback", new_execution_ids, returns=ExecutionIds), cancel
        except Cancelled as error:
            cancel = cancel or error


async def new_execution_ids() -> ExecutionIds:
    """Return new random IDs."""
    return ExecutionIds(execution=await _new_execution_id(), wait=await new_wait_id(), trace=traceparent())


async def _new_execution_id() -> str:
    return uuid4().hex


async def external_execution_id(ctx: restate.WorkflowSharedContext) -> tuple[str | None, bool]:
    """Return the ID of an execution that is rolled back from outside, and whether it is new.

    The ID is None if the record was submitted without one.
    """
    for name in await ctx.state_keys():
        if name.startswith(EXECUTION_PREFIX):
            return name.removeprefix(EXECUTION_PREFIX), False
    promise = get_internal_signal(ctx, EXECUTION_PROMISE, str)
    known = await promise.peek()
    if known is not None or await has_external_rollback(ctx):
        return known, False
    made = await run_with_retry(cast("restate.Context", ctx), RunConfig("execution id"), _new_execution_id)
    try:
        await promise.resolve(made)
    except TerminalError as error:  # a concurrent request resolved it first
        if is_own_cancel(error):
            raise
        return await promise.peek(), False
    return made, True


async def submit_rollback(ctx: restate.Context, request: RollbackRequest) -> None:
    """Start a saga's rollback; it does not depend on this invocation."""
    await ObjectClient(ctx, begin_target, request.saga_id).send(request)


async def submit_and_confirm(ctx: restate.WorkflowSharedContext, request: RollbackRequest) -> None:
    """Start a saga's rollback, and wait until it is recorded."""
    caller = cast("restate.Context", ctx)
    for attempt in itertools.count(1):
        await submit_rollback(caller, request)
        await caller.sleep(scaled(RECORD_POLLS.delay_after(attempt)), "the rollback is recorded")
        recorded = await read_rollback(ctx, request.saga_id)
        if recorded is not None and recorded.has(request.execution_ids):
            return


async def await_rollback(
    ctx: restate.Context, request: RollbackRequest, wait: str, timeout: timedelta | None = None
) -> RollbackReport:
    """Start a saga's rollback, and wait for its end.

    The awakeable only wakes this invocation; the report is read from `Rollbacks`.

    Args:
        ctx: The context.
        request: The saga.
        wait: A random ID from `perdure._wake_ups.make_wait_id`.
        timeout: How long to wait; None for no limit. Then the report has the outcome ``RUNNING``.

    Raises:
        Cancelled: This invocation was cancelled; the rollback continues.
        Conflict: The saga ID belongs to another service. Terminal, 409.
    """
    query = ReportQuery(wait=wait, service=request.service, execution_ids=request.execution_ids)
    backoff = WakeUpBackoff(ctx, f"the rollback of saga '{request.saga_id}'")
    attempt = 1
    # Not scaled: the caller's connection and the work of a rollback take real time.
    timers = [] if timeout is None else [ctx.sleep(timeout, "the wait for the rollback")]
    while True:
        awakeable, woken = new_awakeable(ctx)
        waiter = Waiter(invocation=ctx.request().id, awakeable=awakeable)
        await submit_rollback(ctx, request.model_copy(update={"waiter": waiter}))
        resubmit = ctx.sleep(scaled(OUTCOME_POLLS.delay_after(attempt)), "before the rollback is requested again")
        done = await any_done([woken, resubmit, *timers], "the rollback")
        answer = await ObjectClient(ctx, read_report, request.saga_id).call(query)
        if answer.report is not None and answer.wait == wait:
            return answer.report
        if any(timer in done for timer in timers):
            return RollbackReport(outcome=RollbackState.RUNNING)
        if woken in done:
            await backoff.pause()
        else:
            attempt += 1
        request = request.model_copy(update={"first_hand": False})
