"""Starts what a schedule is to start, watches it, and reports, so that the schedule itself is never held up.

The engine answers a send to a handler that it does not know with a retry of the *sender*, without end. `start` gives up
after a few attempts, and `run`, which called it, reports that as a run that could not be started. It gives up as soon
when its own process is down, and may have sent before: then `run` asks again, under the same idempotency key.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, cast

import restate
from pydantic import JsonValue
from restate.serde import BytesSerde

from perdure._runtime.dispatch import SHORT_RETRIES, is_unknown_handler
from perdure._runtime.serdes import TypedSerde, serde_for
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import until_done
from perdure.clients import ObjectClient, ServiceClient
from perdure.errors import Cancelled, TerminalError
from perdure.handlers import handler
from perdure.retry import RetryPolicy
from perdure.schedules.messages import RunOrder, RunReport, RunState, report_target, start_target
from perdure.schedules.recurrence import ScheduledTarget, stamp

_json: TypedSerde[JsonValue] = serde_for(cast("Any", JsonValue))

_LONGEST_ERROR: Final = 1000
_RETRIES: Final = RetryPolicy(max_interval=timedelta(minutes=2), max_attempts=10)


async def _run(ctx: restate.Context, order: RunOrder) -> None:
    """Start a run's target, wait for its end, and tell the schedule of both."""
    try:
        report = await _watched(ctx, order)
    except Cancelled as error:
        await _tell(ctx, order, RunState.UNKNOWN, error=f"its watching was cancelled: {error.message}")
        raise
    await ObjectClient(ctx, report_target, order.schedule).send(report)


async def _watched(ctx: restate.Context, order: RunOrder) -> RunReport:
    doubts = 0
    while True:
        started = ServiceClient(ctx, start_target).call_async(order)
        await until_done(started.future, f"the start of {order.target}")
        try:
            invocation_id = await started
            break
        except TerminalError as error:
            doubts += 1
            if is_unknown_handler(error.message) or not _RETRIES.permits(doubts):
                why = explain_failure(order.target, _first_line(error))
                return RunReport(run_id=order.run_id, state=RunState.NOT_STARTED, error=why)
        pause = ctx.sleep(scaled(_RETRIES.delay_after(doubts)), f"start {order.target} again")
        await until_done(pause, f"a pause before {order.target} is started again")
    await _tell(ctx, order, RunState.RUNNING, invocation_id=invocation_id)
    ended = ctx.attach_invocation(invocation_id, serde=BytesSerde())
    await until_done(ended, f"{order.target}")
    state, failure = RunState.SUCCEEDED, None
    try:
        await ended
    except TerminalError as error:
        state, failure = RunState.FAILED, _first_line(error)
    return RunReport(run_id=order.run_id, state=state, invocation_id=invocation_id, error=failure)


async def _tell(
    ctx: restate.Context,
    order: RunOrder,
    state: RunState,
    *,
    invocation_id: str | None = None,
    error: str | None = None,
) -> None:
    report = RunReport(run_id=order.run_id, state=state, invocation_id=invocation_id, error=error)
    await ObjectClient(ctx, report_target, order.schedule).send(report)


async def _start(ctx: restate.Context, order: RunOrder) -> str:
    """Start a run's target and return its invocation's id."""
    sent = ctx.generic_send(
        order.target.service,
        order.target.handler,
        _json.serialize(order.payload),
        key=order.target.key,
        idempotency_key=order.run_id,
        headers={"x-perdure-schedule": order.schedule, "x-perdure-planned": stamp(order.planned)},
    )
    return await sent.invocation_id()


def explain_failure(target: ScheduledTarget, message: str) -> str:
    """Return why a target could not be started, in words that say what to do.

    Args:
        target: The target.
        message: What the engine said.
    """
    if is_unknown_handler(message):
        return (
            f"{target} does not exist: deploy a version of the service that has it, or set the schedule anew with "
            "another target"
        )
    return f"{target} could not be started, or it was and nobody could say so: {message}"


def _first_line(error: TerminalError) -> str:
    return error.message.partition("\nTraceback")[0][:_LONGEST_ERROR]


def build_dispatcher() -> restate.Service:
    """Return the dispatcher's service."""
    dispatcher = restate.Service(
        "ScheduleDispatcher", description="Starts and watches runs of schedules.", ingress_private=True
    )
    handler(dispatcher, name="run")(_run)
    handler(dispatcher, name="start", invocation_retry_policy=SHORT_RETRIES)(_start)
    return dispatcher
