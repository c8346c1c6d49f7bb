"""The beginning and the end of invocations and their attempts, told once each although attempts repeat.

An attempt that replays is no beginning. But neither is one that follows on a first attempt which failed before its
first entry in the journal, and the SDK does not tell the two apart; so a process remembers the last invocations that
it began and ended. That memory is for counting right, and nothing else relies on it.
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
from perdure.errors import TerminalError, is_terminal
from perdure.observability import events
from perdure.observability.events import AttemptOutcome, Event, Invocation, all_wanted, publish, wanted
from perdure.observability.recent import Recent

T = TypeVar("T")

SAGA_HEADER = "x-perdure-saga"
STEP_HEADER = "x-perdure-step"


class HandlerRole(Enum):
    """What a handler is to its service."""

    HANDLER = "handler"
    WORKFLOW = "workflow"
    COMPENSATION = "compensation"


_told: Recent[bool] = Recent()
_NOTHING = nullcontext()
_INVOCATION = "perdure_invocation"  # kept at the context: it is asked for at each event


class Life:
    """What this process knows of an invocation.

    Attributes:
        attempts: How many it has seen, since the invocation began.
    """

    __slots__ = ("_began", "_ended", "attempts")

    def __init__(self) -> None:
        self._began: float | None = None
        self._ended = False
        self.attempts = 0

    def attempt(self, now: float, *, replays: bool) -> bool:
        """Count an attempt, and tell if the invocation begins with it.

        What begins after its end is another run of a workflow's key, which has the same id.

        Args:
            now: By `time.monotonic`.
            replays: The attempt begins with what the journal has already.
        """
        self.attempts += 1
        if replays or (self._began is not None and not self._ended):
            return False
        self._began, self._ended, self.attempts = now, False, 1
        return True

    def end(self, now: float) -> tuple[bool, timedelta | None]:
        """Return False when its end is known already, and the time since the beginning, if that was here.

        Args:
            now: By `time.monotonic`.
        """
        if self._ended:
            return False, None
        self._ended = True
        return True, None if self._began is None else timedelta(seconds=now - self._began)


_lives: Recent[Life] = Recent()


def life_of(invocation_id: str) -> Life:
    """Return what is known of an invocation, for its next attempt.

    Args:
        invocation_id: Its id.
    """
    life = _lives.get(invocation_id)
    if life is None:
        life = Life()
        _lives.put(invocation_id, life)
    return life


def first_time(what: str) -> bool:
    """Tell if this process is told something for the first time, of what has no entry of its own in the journal.

    Args:
        what: What, in a text that is the same at each replay and belongs to one invocation.
    """
    if _told.get(what):
        return False
    _told.put(what, value=True)
    return True


def invocation_of(ctx: restate.Context) -> Invocation:
    """Return which invocation a context belongs to.

    Args:
        ctx: A handler's context.
    """
    kept: Invocation | None = getattr(ctx, _INVOCATION, None)
    if kept is None:
        info = sdk.handler_info(ctx)
        invocation_id, key = sdk.invocation_of(ctx)
        kept = Invocation(invocation_id, info, None if info.kind == "service" else key)
        setattr(ctx, _INVOCATION, kept)
    return kept


def happens(ctx: restate.Context, event: type[Event]) -> bool:
    """Tell if an event is to be published: somebody wants it, and what comes now is not replayed.

    Ask before the entry of the journal is made that the event belongs to.

    Args:
        ctx: A handler's context.
        event: The event's class.
    """
    return wanted(event) and not sdk.is_replaying(ctx)


async def watched(ctx: restate.Context, work: Awaitable[T], role: HandlerRole) -> T:
    """Run an attempt of a handler, and tell of it.

    Args:
        ctx: The handler's context.
        work: What the handler does.
        role: What the handler is to its service.

    Returns:
        What the handler returned.
    """
    told = all_wanted()
    if not told:
        return await work
    invocation = invocation_of(ctx)
    replays = sdk.is_replaying(ctx)
    began = time.monotonic()
    life = life_of(invocation.id)
    if life.attempt(began, replays=replays):
        _tell_start(ctx, invocation, role)
    if events.AttemptStarted in told:
        publish(events.AttemptStarted(invocation, replays, life.attempts))
    outcome, failure = AttemptOutcome.INTERRUPTED, None
    try:
        result = await work
    except Exception as error:
        if not sdk.is_interruption(error):
            failure = error
            terminal = is_terminal(error)
            outcome = AttemptOutcome.FAILED if terminal else AttemptOutcome.RETRIED
            publish(events.Failed(invocation, error, terminal, None))
            if terminal:
                _tell_end(ctx, invocation, role, life, error)
        raise
    else:
        outcome = AttemptOutcome.SUCCEEDED
        _tell_end(ctx, invocation, role, life, None)
        return result
    finally:
        if events.AttemptEnded in all_wanted():
            duration = timedelta(seconds=time.monotonic() - began)
            publish(events.AttemptEnded(invocation, outcome, failure, duration))


def watched_run(ctx: restate.Context, run: str, within: Event | None = None) -> AbstractContextManager[object]:
    """Tell of an attempt of a run, which is done in a block.

    Args:
        ctx: The handler's context.
        run: The run's name.
        within: The activity that it is a part of.
    """
    told = all_wanted()
    if events.RunAttemptEnded in told or events.RunAttemptStarted in told or events.Failed in told:
        return _WatchedRun(ctx, run, within)
    return _NOTHING


class _WatchedRun:
    # Not a generator: it is entered at each run, and that would cost several times as much.
    def __init__(self, ctx: restate.Context, run: str, within: Event | None) -> None:
        self._invocation = invocation_of(ctx)
        self._run = run
        self._within = within
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()
        if events.RunAttemptStarted in all_wanted():
            publish(events.RunAttemptStarted(self._invocation, self._run, self._within))

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        told = all_wanted()
        failure = error if isinstance(error, Exception) else None
        if failure is not None and events.Failed in told:
            publish(events.Failed(self._invocation, failure, isinstance(failure, TerminalError), self._run))
        if events.RunAttemptEnded in told:
            duration = timedelta(seconds=time.monotonic() - self._began)
            cut_off = failure is None and error is not None  # its task was cancelled
            publish(events.RunAttemptEnded(self._invocation, self._run, failure, duration, cut_off))


def _tell_start(ctx: restate.Context, invocation: Invocation, role: HandlerRole) -> None:
    told = all_wanted()
    if events.InvocationStarted in told:
        publish(events.InvocationStarted(invocation))
    if role is HandlerRole.WORKFLOW and events.WorkflowStarted in told:
        publish(events.WorkflowStarted(invocation))
    elif role is HandlerRole.COMPENSATION and events.CompensationStarted in told:
        publish(events.CompensationStarted(invocation, *_undoes(ctx)))


def _tell_end(
    ctx: restate.Context, invocation: Invocation, role: HandlerRole, life: Life, error: BaseException | None
) -> None:
    if sdk.is_replaying(ctx):  # the journal has the result already
        return
    first, duration = life.end(time.monotonic())
    _lives.put(invocation.id, life)  # remembered as long as what has just begun
    if not first:
        return
    told = all_wanted()
    if role is HandlerRole.WORKFLOW and events.WorkflowEnded in told:
        publish(events.WorkflowEnded(invocation, error, duration))
    elif role is HandlerRole.COMPENSATION and events.CompensationEnded in told:
        publish(events.CompensationEnded(invocation, error, duration, *_undoes(ctx)))
    if events.InvocationEnded in told:
        publish(events.InvocationEnded(invocation, error, duration))


def _undoes(ctx: restate.Context) -> tuple[str | None, str | None]:
    headers = ctx.request().headers
    return headers.get(SAGA_HEADER), headers.get(STEP_HEADER)
