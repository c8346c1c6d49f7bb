"""The beginning and the end of invocations and their attempts, told once each although attempts repeat.

An attempt that replays is no beginning. But neither is one that follows on a first attempt which failed before its
first entry in the journal, and the SDK does not tell the two apart; so a process remembers the last invocations that
it began and ended. That memory is for counting right, and nothing else relies on it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from enum import Enum
from typing import TypeVar, cast

import restate

from perdure import _sdk
from perdure.errors import TerminalError, is_terminal
from perdure.observability import events
from perdure.observability.events import AttemptOutcome, Event, Invocation, publish, wanted

T = TypeVar("T")

SAGA_HEADER = "x-perdure-saga"
STEP_HEADER = "x-perdure-step"


class Role(Enum):
    """What a handler is to its service."""

    HANDLER = "handler"
    WORKFLOW = "workflow"
    COMPENSATION = "compensation"


class _Memory:
    """The last invocations that began here, and those that ended.

    Args:
        size: How many of them; the oldest is forgotten first.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._began: OrderedDict[str, float | None] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, invocation_id: str) -> bool:
        """Remember a beginning; return False when it is remembered already."""
        with self._lock:
            if invocation_id in self._began:
                return False
            self._keep(invocation_id, time.monotonic())
            return True

    def end(self, invocation_id: str) -> tuple[bool, timedelta | None]:
        """Remember an end; return False when it is remembered already, and the time since the beginning, if known."""
        with self._lock:
            known = invocation_id in self._began
            began = self._began.get(invocation_id)
            if known and began is None:
                return False, None
            self._keep(invocation_id, None)
            return True, None if began is None else timedelta(seconds=time.monotonic() - began)

    def _keep(self, invocation_id: str, began: float | None) -> None:
        self._began[invocation_id] = began
        self._began.move_to_end(invocation_id)
        while len(self._began) > self._size:
            self._began.popitem(last=False)


_memory = _Memory()
_NOTHING = nullcontext()


class _Seen:
    """The last things that were told of.

    Args:
        size: How many of them; the oldest is forgotten first.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, what: str) -> bool:
        """Remember something; return False when it is remembered already."""
        with self._lock:
            if what in self._seen:
                return False
            self._seen[what] = None
            if len(self._seen) > self._size:
                self._seen.popitem(last=False)
            return True


_told = _Seen()


def first_time(what: str) -> bool:
    """Tell if this process is told something for the first time, of what has no entry of its own in the journal.

    Args:
        what: What, in a text that is the same at each replay and belongs to one invocation.
    """
    return _told.add(what)


def invocation_of(ctx: restate.Context) -> Invocation:
    """Return which invocation a context belongs to.

    Args:
        ctx: A handler's context.
    """
    info = _sdk.handler_info(ctx)
    key = None if info.kind == "service" else cast("restate.ObjectContext", ctx).key()
    return Invocation(ctx.request().id, info, key)


def happens(ctx: restate.Context, event: type[Event]) -> bool:
    """Tell if an event is to be published: somebody wants it, and what comes now is not replayed.

    Ask before the entry of the journal is made that the event belongs to.

    Args:
        ctx: A handler's context.
        event: The event's class.
    """
    return wanted(event) and not _sdk.is_replaying(ctx)


async def watched(ctx: restate.Context, work: Awaitable[T], role: Role) -> T:
    """Run an attempt of a handler, and tell of it.

    Args:
        ctx: The handler's context.
        work: What the handler does.
        role: What the handler is to its service.

    Returns:
        What the handler returned.
    """
    if not wanted():
        return await work
    invocation = invocation_of(ctx)
    replays = _sdk.is_replaying(ctx)
    began = time.monotonic()
    if not replays and _memory.begin(invocation.id):
        _tell_start(ctx, invocation, role)
    publish(events.AttemptStarted(invocation, replays))
    outcome, failure = AttemptOutcome.INTERRUPTED, None
    try:
        result = await work
    except Exception as error:
        if not _sdk.is_interruption(error):
            failure = error
            terminal = is_terminal(error)
            outcome = AttemptOutcome.FAILED if terminal else AttemptOutcome.RETRIED
            publish(events.Failed(invocation, error, terminal, None))
            if terminal:
                _tell_end(ctx, invocation, role, error)
        raise
    else:
        outcome = AttemptOutcome.SUCCEEDED
        _tell_end(ctx, invocation, role, None)
        return result
    finally:
        duration = timedelta(seconds=time.monotonic() - began)
        publish(events.AttemptEnded(invocation, outcome, failure, duration))


def watched_run(ctx: restate.Context, run: str, within: Event | None = None) -> AbstractContextManager[None]:
    """Tell of an attempt of a run, which is done in a block.

    Args:
        ctx: The handler's context.
        run: The run's name.
        within: The activity that it is a part of.
    """
    if not wanted(events.RunAttemptStarted, events.RunAttemptEnded, events.Failed):
        return _NOTHING
    return _watched_run(ctx, run, within)


@contextmanager
def _watched_run(ctx: restate.Context, run: str, within: Event | None) -> Iterator[None]:
    invocation = invocation_of(ctx)
    began = time.monotonic()
    failure: BaseException | None = None
    publish(events.RunAttemptStarted(invocation, run, within))
    try:
        yield
    except Exception as error:
        failure = error
        publish(events.Failed(invocation, error, isinstance(error, TerminalError), run))
        raise
    finally:
        duration = timedelta(seconds=time.monotonic() - began)
        publish(events.RunAttemptEnded(invocation, run, failure, duration))


def _tell_start(ctx: restate.Context, invocation: Invocation, role: Role) -> None:
    publish(events.InvocationStarted(invocation))
    match role:
        case Role.WORKFLOW:
            publish(events.WorkflowStarted(invocation))
        case Role.COMPENSATION:
            saga, step = _undoes(ctx)
            publish(events.CompensationStarted(invocation, saga, step))


def _tell_end(ctx: restate.Context, invocation: Invocation, role: Role, error: BaseException | None) -> None:
    if _sdk.is_replaying(ctx):  # the journal has the result already
        return
    first, duration = _memory.end(invocation.id)
    if not first:
        return
    match role:
        case Role.WORKFLOW:
            publish(events.WorkflowEnded(invocation, error, duration))
        case Role.COMPENSATION:
            saga, step = _undoes(ctx)
            publish(events.CompensationEnded(invocation, error, duration, saga, step))
    publish(events.InvocationEnded(invocation, error, duration))


def _undoes(ctx: restate.Context) -> tuple[str | None, str | None]:
    headers = ctx.request().headers
    return headers.get(SAGA_HEADER), headers.get(STEP_HEADER)
