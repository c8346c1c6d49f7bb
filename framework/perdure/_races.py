"""Waiting with a time limit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

import restate

from perdure._runtime.time_scale import scaled
from perdure.observability.activities import ActivityKind, activity
from perdure._runtime.run_scope import refuse_inside_run
from perdure.signals import ExternalSignal, get_internal_signal

T = TypeVar("T")


@dataclass(frozen=True)
class PromiseRaceResult(Generic[T]):
    """Who won a race between a promise and a timeout.

    Args:
        value: The promise's value; None when time ran out.
        timed_out: True when time ran out.
    """

    value: T | None
    timed_out: bool

    @property
    def promise_won(self) -> bool:
        """True when the promise was completed in time."""
        return not self.timed_out


async def race_promise_with_timeout(
    ctx: restate.WorkflowContext, name: str, timeout: timedelta, type_: type[T]
) -> PromiseRaceResult[T]:
    """Wait for an internal signal, but no longer than the timeout.

    Args:
        ctx: The workflow's context.
        name: The signal's name.
        timeout: How long to wait; durable, so a crash does not start it again. Nothing or less, as of a deadline that
            has passed, takes the value only if it is there.
        type_: The value's type.

    Returns:
        The value, or that time ran out; a timeout is no error.

    Raises:
        TerminalError: The signal was rejected, or this invocation was cancelled.
    """
    refuse_inside_run("race_promise_with_timeout")
    with activity(ctx, ActivityKind.RACE, f"signal {name}"):
        promise = get_internal_signal(ctx, name, type_).future
        winner, value = await restate.select(promise=promise, timeout=_timer(ctx, timeout, name))
    if winner == "timeout":
        return PromiseRaceResult(None, timed_out=True)
    return PromiseRaceResult(value, timed_out=False)


async def race_awakeable_with_timeout(
    ctx: restate.Context, signal: ExternalSignal[T], timeout: timedelta, timeout_value: T
) -> tuple[T, bool]:
    """Wait for an external signal, but no longer than the timeout.

    The answer is checked if the signal has a check; without one, it comes from anybody who knows the signal's id.

    Args:
        ctx: The handler's context.
        signal: What `wait_for_external_signal` returned.
        timeout: How long to wait; durable. Nothing or less takes the value only if it is there.
        timeout_value: What to return when time runs out.

    Returns:
        The value and False, or ``timeout_value`` and True.

    Raises:
        Refused: The answer failed the signal's check. Terminal, 403.
        TerminalError: The signal was rejected, or this invocation was cancelled.
    """
    refuse_inside_run("race_awakeable_with_timeout")
    with activity(ctx, ActivityKind.RACE, f"signal {signal.id}"):
        winner, value = await restate.select(signal=signal.future, timeout=_timer(ctx, timeout, signal.id))
    return (timeout_value, True) if winner == "timeout" else (value, False)


def _timer(ctx: restate.Context, timeout: timedelta, what: str) -> restate.RestateDurableFuture[None]:
    # The SDK can't sleep a negative time, and fails at each attempt.
    return ctx.sleep(max(scaled(timeout), timedelta(0)), f"timeout {what}")
