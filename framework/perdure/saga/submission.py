"""Handing a saga over to `Rollbacks`, and waiting for what comes of it.

A run of an orchestration has an id of ours, made when its record is handed over. The engine has none that would do: a
workflow's key that is used again after its retention gives the same invocation id, the same seed and the same
awakeables. The id is kept with the run, in its state or in a promise, which go with its retention. So `Rollbacks`
knows a second request for the same run from one for another run, and asking again does no harm.

What is to begin a rollback may be killed before it has written anything down, and then nobody would answer. So who
waits asks again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import cast
from uuid import uuid4

import restate
from pydantic import BaseModel

from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import done_before, is_own_cancel
from perdure._wake_ups import WakeUps, new_awakeable, new_wait_id
from perdure.clients import ObjectClient
from perdure.errors import Cancelled, TerminalError
from perdure.observability.tracing import traceparent
from perdure.runs import RunConfig, run_with_retry
from perdure.saga.messages import ReportQuery, RollbackReport, begin_target, read_report
from perdure.saga.progress import read_rollback, undone_from_outside
from perdure.saga.schema import EXECUTION_PREFIX, EXECUTION_PROMISE, RollbackRequest, Waiter
from perdure.signals import get_internal_signal

ASK_AGAIN = timedelta(seconds=30)
"""How long to wait for the end of a rollback before asking for it again; twice as long each time."""
ASK_AGAIN_AT_MOST = timedelta(minutes=10)
LOOK_AFTER = timedelta(milliseconds=50)
"""How long a rollback may take to be on record before it is looked for; twice as long each time."""


class RunMade(BaseModel):
    """What is another one at each attempt, so that the journal has to keep it.

    Args:
        run: The run's id.
        wait: Random id of the wait for the rollback's end.
        trace: A span that the rollback's are linked to.
    """

    run: str
    wait: str
    trace: str | None


async def make_run(ctx: restate.Context) -> tuple[RunMade, Cancelled | None]:
    """Make what tells a run of an orchestration from others; a run of the journal's, which ends by itself.

    So a cancelled invocation may wait for it, too, which must wait for nothing else.

    Args:
        ctx: The orchestration's context.

    Returns:
        What was made, and the first cancel that came meanwhile.
    """
    cancel: Cancelled | None = None
    while True:
        try:
            return await run_with_retry(ctx, "hand over", _made, returns=RunMade), cancel
        except Cancelled as error:
            cancel = cancel or error


async def _made() -> RunMade:
    return RunMade(run=await _new_run_id(), wait=await new_wait_id(), trace=traceparent())


async def _new_run_id() -> str:
    return uuid4().hex


async def run_id(ctx: restate.WorkflowSharedContext) -> tuple[str | None, bool]:
    """Return the id under which a run's record is handed over from outside, the same each time; made the first time.

    Args:
        ctx: A shared handler's context of the orchestration.

    Returns:
        The id, and whether it is new. None when the record was handed over without one.
    """
    for name in await ctx.state_keys():
        if name.startswith(EXECUTION_PREFIX):
            return name.removeprefix(EXECUTION_PREFIX), False
    promise = get_internal_signal(ctx, EXECUTION_PROMISE, str)
    known = await promise.peek()
    if known is not None or await undone_from_outside(ctx):
        return known, False
    made = await run_with_retry(cast("restate.Context", ctx), RunConfig("run id"), _new_run_id)
    try:
        await promise.resolve(made)
    except TerminalError as error:  # somebody else asks for the same rollback at this moment, and was first
        if is_own_cancel(error):
            raise
        return await promise.peek(), False
    return made, True


async def hand_over(ctx: restate.Context, request: RollbackRequest) -> None:
    """Have a saga rolled back, out of reach of whatever happens to this invocation.

    Args:
        ctx: A context.
        request: The saga.
    """
    await ObjectClient(ctx, begin_target, request.saga_id).send(request)


async def begin(ctx: restate.WorkflowSharedContext, request: RollbackRequest) -> None:
    """Have a saga rolled back, and wait until its rollback is on record.

    Args:
        ctx: A shared handler's context of the orchestration.
        request: The saga.
    """
    caller = cast("restate.Context", ctx)
    delay = LOOK_AFTER
    while True:
        await hand_over(caller, request)
        await caller.sleep(scaled(delay), "the rollback begins")
        found = await read_rollback(ctx, request.saga_id)
        if found is not None and found.has(request.runs):
            return
        delay = min(delay * 2, ASK_AGAIN_AT_MOST)


async def outcome_of(ctx: restate.Context, request: RollbackRequest, wait: str) -> RollbackReport:
    """Start a saga's rollback, and wait for the end of it.

    The awakeable only wakes this invocation; the report is read from `Rollbacks`.

    Args:
        ctx: A context.
        request: The saga, with the id of the execution if it is known.
        wait: Random id of this wait, see `perdure._wake_ups.make_wait_id`.

    Raises:
        Cancelled: This invocation was cancelled; the rollback goes on.
        Conflict: The saga's id belongs to another service. Terminal, 409.
    """
    query = ReportQuery(wait=wait, service=request.service, runs=request.runs)
    wake_ups = WakeUps(ctx, f"the rollback of saga '{request.saga_id}'")
    delay = ASK_AGAIN
    while True:
        awakeable, woken = new_awakeable(ctx)
        waiter = Waiter(invocation=ctx.request().id, awakeable=awakeable)
        await hand_over(ctx, request.model_copy(update={"waiter": waiter}))
        late = ctx.sleep(scaled(delay), "before asking for the rollback again")
        is_woken = await done_before(woken, late, "the rollback")
        answer = await ObjectClient(ctx, read_report, request.saga_id).call(query)
        if answer.report is not None and answer.wait == wait:
            return answer.report
        if is_woken:
            await wake_ups.was_early()
        else:
            delay = min(delay * 2, ASK_AGAIN_AT_MOST)
        request = request.model_copy(update={"first_hand": False})
