"""Publication of the start and end of invocations and their attempts, once each although attempts repeat.

A replaying attempt is not a start. Neither is the attempt after a first one that failed before its first journal entry,
and the SDK cannot tell the two apart. The process therefore remembers recent invocations, for correct counts only.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from enum import Enum
from typing import TypeVar

import restate

from perdure._runtime import sdk
from perdure._runtime.executions import RecentMap
from perdure._runtime.failures import is_interruption
from perdure.errors import TerminalError, is_terminal
from perdure.observability import events
from perdure.observability.events import AttemptOutcome, Event, Invocation, has_listeners, publish, subscribed_events

T = TypeVar("T")

SAGA_HEADER = sdk.SAGA_HEADER
STEP_HEADER = "x-perdure-step"


class HandlerRole(Enum):
    """HandlerRole of a handler in its service."""

    HANDLER = "handler"
    WORKFLOW = "workflow"
    COMPENSATION = "compensation"


class InvocationTracker:
    """Start, end and number of attempts of one invocation, as far as this process has seen them."""

    __slots__ = ("_ended", "_started_at", "attempts")

    def __init__(self) -> None:
        self._started_at: float | None = None
        self._ended = False
        self.attempts = 0

    def record_attempt(self, now: float, *, replays: bool) -> bool:
        """Count an attempt, and return whether the invocation starts with it."""
        self.attempts += 1
        if replays or self._started_at is not None or self._ended:
            return False
        self._started_at = now
        return True

    def record_end(self, now: float) -> tuple[bool, timedelta | None]:
        """Return whether this is the first end, and the duration if the start was seen here."""
        if self._ended:
            return False, None
        self._ended = True
        return True, None if self._started_at is None else timedelta(seconds=now - self._started_at)


_observations: RecentMap[bool] = RecentMap()
_trackers: RecentMap[InvocationTracker] = RecentMap()
_NOTHING = nullcontext()
_INVOCATION = "perdure_invocation"  # attribute of the context, since every event reads it


def tracker_of(execution: str) -> InvocationTracker:
    """Return the tracker of an execution; create it if necessary."""
    tracker = _trackers.get(execution)
    if tracker is None:
        tracker = InvocationTracker()
        _trackers.put(execution, tracker)
    return tracker


def first_observation(ctx: restate.Context, key: str) -> bool:
    """Return whether this process observes an event without journal entry for the first time.

    The key must be equal at every replay and unique to the invocation.
    """
    name = f"{sdk.execution_of(ctx)}/{key}"
    if _observations.get(name):
        return False
    _observations.put(name, value=True)
    return True


def invocation_of(ctx: restate.Context) -> Invocation:
    """Return the invocation of a context."""
    cached: Invocation | None = getattr(ctx, _INVOCATION, None)
    if cached is None:
        info = sdk.handler_info(ctx)
        invocation_id, key = sdk.invocation_of(ctx)
        cached = Invocation(invocation_id, info, None if info.kind == "service" else key)
        setattr(ctx, _INVOCATION, cached)
    return cached


def should_publish(ctx: restate.Context, event: type[Event]) -> bool:
    """Return whether an event has listeners and is not a replay; call it before the journal entry is created."""
    return has_listeners(event) and not sdk.is_replaying(ctx)


async def observe_attempt(ctx: restate.Context, work: Awaitable[T], role: HandlerRole) -> T:
    """Run an attempt of a handler, publish its events, and return its result."""
    subscribed = subscribed_events()
    if not subscribed:
        return await work
    invocation = invocation_of(ctx)
    replays = sdk.is_replaying(ctx)
    start = time.monotonic()
    tracker = tracker_of(sdk.execution_of(ctx))
    if tracker.record_attempt(start, replays=replays):
        _publish_start(ctx, invocation, role)
    if events.AttemptStarted in subscribed:
        publish(events.AttemptStarted(invocation, replays, tracker.attempts))
    outcome, failure = AttemptOutcome.INTERRUPTED, None
    try:
        result = await work
    except Exception as error:
        if not is_interruption(error):
            failure = error
            terminal = is_terminal(error)
            outcome = AttemptOutcome.FAILED if terminal else AttemptOutcome.RETRIED
            publish(events.Failed(invocation, error, terminal, None))
            if terminal:
                _publish_end(ctx, invocation, role, tracker, error)
        raise
    else:
        outcome = AttemptOutcome.SUCCEEDED
        _publish_end(ctx, invocation, role, tracker, None)
        return result
    finally:
        if events.AttemptEnded in subscribed_events():
            duration = timedelta(seconds=time.monotonic() - start)
            publish(events.AttemptEnded(invocation, outcome, failure, duration))


def observe_run(ctx: restate.Context, run: str, parent: Event | None = None) -> AbstractContextManager[object]:
    """Publish the events of one attempt of a run, which is the block."""
    subscribed = subscribed_events()
    if events.RunAttemptEnded in subscribed or events.RunAttemptStarted in subscribed or events.Failed in subscribed:
        return _ObservedRun(ctx, run, parent)
    return _NOTHING


class _ObservedRun:
    # A class, since a generator costs several times as much per run.
    def __init__(self, ctx: restate.Context, run: str, parent: Event | None) -> None:
        self._invocation = invocation_of(ctx)
        self._run = run
        self._parent = parent
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.monotonic()
        if events.RunAttemptStarted in subscribed_events():
            publish(events.RunAttemptStarted(self._invocation, self._run, self._parent))

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        subscribed = subscribed_events()
        failure = error if isinstance(error, Exception) else None
        if failure is not None and events.Failed in subscribed:
            publish(events.Failed(self._invocation, failure, isinstance(failure, TerminalError), self._run))
        if events.RunAttemptEnded in subscribed:
            duration = timedelta(seconds=time.monotonic() - self._start)
            interrupted = failure is None and error is not None  # its task was cancelled
            publish(events.RunAttemptEnded(self._invocation, self._run, failure, duration, interrupted))


def _publish_start(ctx: restate.Context, invocation: Invocation, role: HandlerRole) -> None:
    subscribed = subscribed_events()
    if events.InvocationStarted in subscribed:
        publish(events.InvocationStarted(invocation))
    if role is HandlerRole.WORKFLOW and events.WorkflowStarted in subscribed:
        publish(events.WorkflowStarted(invocation))
    elif role is HandlerRole.COMPENSATION and events.CompensationStarted in subscribed:
        publish(events.CompensationStarted(invocation, *_saga_and_step(ctx)))


def _publish_end(
    ctx: restate.Context,
    invocation: Invocation,
    role: HandlerRole,
    tracker: InvocationTracker,
    error: BaseException | None,
) -> None:
    if sdk.is_replaying(ctx):  # the result is in the journal already
        return
    first, duration = tracker.record_end(time.monotonic())
    _trackers.put(sdk.execution_of(ctx), tracker)  # keep it as long as a new one
    if not first:
        return
    subscribed = subscribed_events()
    if role is HandlerRole.WORKFLOW and events.WorkflowEnded in subscribed:
        publish(events.WorkflowEnded(invocation, error, duration))
    elif role is HandlerRole.COMPENSATION and events.CompensationEnded in subscribed:
        publish(events.CompensationEnded(invocation, error, duration, *_saga_and_step(ctx)))
    if events.InvocationEnded in subscribed:
        publish(events.InvocationEnded(invocation, error, duration))


def _saga_and_step(ctx: restate.Context) -> tuple[str | None, str | None]:
    headers = ctx.request().headers
    return headers.get(SAGA_HEADER), headers.get(STEP_HEADER)
