"""Events of handler operations that take time: calls, saga steps, approvals, races.

An activity starts when it is first executed, not when it is replayed. It ends with its result, or with the attempt in
which it started: a suspended wait continues in the engine and in another attempt. Runs have their own events.
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

from perdure._runtime.failures import is_interruption
from perdure.observability.events import Event, publish
from perdure.observability.lifecycle import first_observation, invocation_of, should_publish


class ActivityKind(StrEnum):
    """Kind of an activity."""

    CALL = "call"
    STEP = "step"
    APPROVAL = "approval"
    RACE = "race"


@dataclass(slots=True, eq=False)
class ActivityStarted(Event):
    """Start of an activity.

    Args:
        kind: The kind of activity.
        name: The target of a call, the name of a step, the ID of an approval, or the operands of a race.
        parent: The enclosing activity, such as the step of a call.
        attributes: Further attributes.
    """

    kind: ActivityKind
    name: str
    parent: Event | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    # Compared by identity, since concurrent calls of one handler are equal in all fields.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@dataclass(slots=True)
class ActivityEnded(Event):
    """End of an activity within the attempt in which it started.

    Args:
        started: The event of its start.
        error: The error of a failed activity.
        duration: The duration.
    """

    started: ActivityStarted
    error: BaseException | None
    duration: timedelta


_current: ContextVar[ActivityStarted | None] = ContextVar("perdure_activity", default=None)


class Activity:
    """Running activity.

    Args:
        started: The published start; None if neither start nor end is published.
    """

    def __init__(self, started: ActivityStarted | None) -> None:
        self._started = started
        self._start = time.monotonic()

    def end(self, error: BaseException | None = None) -> None:
        """Publish the end, once."""
        if self._started is None:
            return
        started, self._started = self._started, None
        duration = timedelta(seconds=time.monotonic() - self._start)
        publish(ActivityEnded(started.invocation, started, error, duration))

    @property
    def started(self) -> ActivityStarted | None:
        """The published start while the activity runs; None otherwise."""
        return self._started

    def as_current(self) -> AbstractContextManager[None]:
        """Make this activity the parent of the activities and runs that start in a block."""
        return _AsCurrent(self._started)


class _AsCurrent:
    # A class, since a generator costs several times as much per step.
    def __init__(self, started: ActivityStarted | None) -> None:
        self._started = started

    def __enter__(self) -> None:
        self._token = _current.set(self._started)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


UNOBSERVED: Final = Activity(None)
"""An activity without events."""


def current_activity() -> ActivityStarted | None:
    """Return the activity of the running code."""
    return _current.get()


def start_activity(
    ctx: restate.Context, kind: ActivityKind, name: str, *, once: str | None = None, **attributes: str
) -> Activity:
    """Start an activity; call this before its first journal entry is created.

    Args:
        ctx: The handler's context.
        kind: The kind of activity.
        name: The name, see `ActivityStarted`.
        once: For activities without a journal entry, a key that is unique in the invocation and equal at each replay.
        attributes: Further attributes.
    """
    if not should_publish(ctx, ActivityStarted):
        return UNOBSERVED
    if once is not None and not first_observation(ctx, f"{kind}/{once}"):
        return UNOBSERVED
    started = ActivityStarted(invocation_of(ctx), kind, name, _current.get(), attributes)
    publish(started)
    return Activity(started)


@contextmanager
def activity(
    ctx: restate.Context, kind: ActivityKind, name: str, *, once: str | None = None, **attributes: str
) -> Iterator[None]:
    """Run a block as an activity, see `start_activity`."""
    running = start_activity(ctx, kind, name, once=once, **attributes)
    try:
        with running.as_current():
            yield
    except Exception as error:
        if not is_interruption(error):  # an interrupted activity ends with its attempt
            running.end(error)
        raise
    else:
        running.end()
