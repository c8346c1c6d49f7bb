"""What a handler does that takes time beyond its own code: calls, steps of a saga, waits for people, races.

An activity is told of when it begins, not when it is replayed, and it ends with its result or with the attempt that it
began in: when a handler is suspended in the middle of a wait, what follows belongs to the engine and to another
attempt. Runs are told of by themselves, since each has attempts of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

import restate

from perdure._runtime import sdk
from perdure.observability.events import Event, publish
from perdure.observability.lifecycle import first_time, happens, invocation_of


class ActivityKind(StrEnum):
    """What sort of activity it is."""

    CALL = "call"
    STEP = "step"
    APPROVAL = "approval"
    RACE = "race"


@dataclass(slots=True, eq=False)
class ActivityStarted(Event):
    """A handler began something that takes time.

    Args:
        kind: What sort it is.
        name: For a call its target, for a step its name, for an approval its id, for a race what is raced.
        within: The activity that it is a part of: a step's call.
        facts: What else is known about it.
    """

    kind: ActivityKind
    name: str
    within: Event | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    # Itself and nothing else: two calls of one handler, made at once, differ in nothing but that.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@dataclass(slots=True)
class ActivityEnded(Event):
    """It ended, in the attempt that it began in.

    Args:
        started: Which one.
        error: Why it failed, if it did.
        duration: How long it took.
    """

    started: ActivityStarted
    error: BaseException | None
    duration: timedelta


_current: ContextVar[ActivityStarted | None] = ContextVar("perdure_activity", default=None)


class Activity:
    """An activity under way.

    Args:
        started: What was told of its beginning; None when nobody listens or it is replayed, and its end is no news
            either.
    """

    def __init__(self, started: ActivityStarted | None) -> None:
        self._started = started
        self._began = time.monotonic()

    def end(self, error: BaseException | None = None) -> None:
        """Tell of its end, once.

        Args:
            error: Why it failed; None when it did not.
        """
        if self._started is None:
            return
        started, self._started = self._started, None
        duration = timedelta(seconds=time.monotonic() - self._began)
        publish(ActivityEnded(started.invocation, started, error, duration))

    @property
    def started(self) -> ActivityStarted | None:
        """What was told of its beginning, while it is under way; None when nothing was."""
        return self._started

    def around(self) -> AbstractContextManager[None]:
        """Make what begins in a block a part of this activity."""
        return _Around(self._started)


class _Around:
    # Not a generator: it is entered at each step, and that would cost several times as much.
    def __init__(self, started: ActivityStarted | None) -> None:
        self._started = started

    def __enter__(self) -> None:
        self._token = _current.set(self._started)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


UNWATCHED: Final = Activity(None)
"""The activity that nobody is told of."""


def current() -> ActivityStarted | None:
    """Return what the code that is running is a part of."""
    return _current.get()


def begin(ctx: restate.Context, kind: ActivityKind, name: str, *, once: str | None = None, **facts: str) -> Activity:
    """Tell that something begins. Call it before its first entry in the journal is made.

    Args:
        ctx: The handler's context.
        kind: What sort it is.
        name: See `ActivityStarted`.
        once: For what makes no entry of its own, so that a replay can't be told from it: a text that belongs to it
            alone in its invocation, and is the same at each replay.
        facts: What else is known about it.

    Returns:
        The activity; end it.
    """
    if not happens(ctx, ActivityStarted):
        return UNWATCHED
    if once is not None and not first_time(f"{ctx.request().id}/{kind}/{once}"):
        return UNWATCHED
    started = ActivityStarted(invocation_of(ctx), kind, name, _current.get(), facts)
    publish(started)
    return Activity(started)


@contextmanager
def activity(
    ctx: restate.Context, kind: ActivityKind, name: str, *, once: str | None = None, **facts: str
) -> Iterator[None]:
    """Tell that something begins, and ends with this block.

    Args:
        ctx: The handler's context.
        kind: What sort it is.
        name: See `ActivityStarted`.
        once: See `begin`.
        facts: What else is known about it.
    """
    under_way = begin(ctx, kind, name, once=once, **facts)
    try:
        with under_way.around():
            yield
    except Exception as error:
        if not sdk.is_interruption(error):  # else it goes on in another attempt, and this one's end is its end here
            under_way.end(error)
        raise
    else:
        under_way.end()
