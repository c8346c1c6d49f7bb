"""`ScheduleDispatcher`: starts the targets of schedules, waits for them, and reports their results.

The engine retries a handler that sends to an unknown handler without limit. `start` therefore has a short retry policy.
`run` reports its failure as a run that was not started. If the outcome of `start` is unknown, for example because its
process was killed, `run` repeats it under the same idempotency key.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, cast

import restate
from pydantic import JsonValue
from restate.serde import BytesSerde

from perdure._runtime.dispatch import SHORT_RETRIES
from perdure._runtime.engine_messages import says_unknown_handler
from perdure._runtime.serdes import TypedSerde, serde_for
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import until_done
from perdure.clients import ObjectClient, ServiceClient
from perdure.errors import Cancelled, TerminalError
from perdure.handlers import handler
from perdure.retry import RetryPolicy
from perdure.schedules.messages import RunReport, RunRequest, RunState, report_target, start_target
from perdure.schedules.recurrence import ScheduledTarget, format_utc

_json: TypedSerde[JsonValue] = serde_for(cast("Any", JsonValue))

_MAX_ERROR_LENGTH: Final = 1000
_RETRIES: Final = RetryPolicy(max_interval=timedelta(minutes=2), max_attempts=10)


async def _run(ctx: restate.Context, request: RunRequest) -> None:
    """Start a run's target, wait for its end, and report both to the schedule."""
    try:
        report = await _run_target(ctx, request)
    except Cancelled as error:
        report = RunReport(
            run_id=request.run_id,
            state=RunState.UNKNOWN,
            error=f"the dispatcher was cancelled while it waited for the run: {error.message}",
        )
        await _send_report(ctx, request, report)
        raise
    await _send_report(ctx, request, report)


async def _run_target(ctx: restate.Context, request: RunRequest) -> RunReport:
    attempts = 0
    while True:
        start = ServiceClient(ctx, start_target).call_async(request)
        await until_done(start.future, f"the start of {request.target}")
        try:
            invocation_id = await start
            break
        except TerminalError as error:
            attempts += 1
            if says_unknown_handler(error.message) or not _RETRIES.permits(attempts):
                message = explain_failure(request.target, _first_line(error))
                return RunReport(run_id=request.run_id, state=RunState.NOT_STARTED, error=message)
        delay = scaled(_RETRIES.delay_after(attempts))
        await until_done(ctx.sleep(delay, f"start {request.target} again"), f"the delay before {request.target}")
    running = RunReport(run_id=request.run_id, state=RunState.RUNNING, invocation_id=invocation_id)
    await _send_report(ctx, request, running)
    result = ctx.attach_invocation(invocation_id, serde=BytesSerde())
    await until_done(result, f"{request.target}")
    try:
        await result
    except TerminalError as error:
        return running.model_copy(update={"state": RunState.FAILED, "error": _first_line(error)})
    return running.model_copy(update={"state": RunState.SUCCEEDED})


async def _send_report(ctx: restate.Context, request: RunRequest, report: RunReport) -> None:
    await ObjectClient(ctx, report_target, request.schedule).send(report)


async def _start(ctx: restate.Context, request: RunRequest) -> str:
    """Start a run's target and return the invocation ID."""
    sent = ctx.generic_send(
        request.target.service,
        request.target.handler,
        _json.serialize(request.payload),
        key=request.target.key,
        idempotency_key=request.run_id,
        headers={"x-perdure-schedule": request.schedule, "x-perdure-planned": format_utc(request.planned)},
    )
    return await sent.invocation_id()


def explain_failure(target: ScheduledTarget, message: str) -> str:
    """Return the error of a run whose target could not be started, with the action to take."""
    if says_unknown_handler(message):
        return f"{target} does not exist: deploy a version of the service with this handler, or set another target"
    return f"the start of {target} failed, or its outcome is unknown: {message}"


def _first_line(error: TerminalError) -> str:
    return error.message.partition("\nTraceback")[0][:_MAX_ERROR_LENGTH]


class ScheduleDispatcher:
    """Handlers of `ScheduleDispatcher`."""

    def __init__(self) -> None:
        self.definition = restate.Service(
            "ScheduleDispatcher", description="Starts runs of schedules and waits for them.", ingress_private=True
        )
        handler(self.definition, name="run")(_run)
        handler(self.definition, name="start", invocation_retry_policy=SHORT_RETRIES)(_start)
