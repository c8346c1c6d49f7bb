"""What happens in handlers, as typed events: the one point where hooks, and traces, look in.

Code that does something publishes an event; who wants to know subscribes to its class. Nobody subscribed: a look into
an empty dict is all it costs. A listener is a plain function and must be quick, since handlers wait for it. What it
raises is logged, and harms no invocation.

Events tell what happens, not what is replayed: one that belongs to an entry of the journal is published when that
entry is made, and never again. The limit of that: the engine learns of an entry only after it was made. When a process
dies, or loses its connection, in between, the entry is made anew, and its event with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from perdure._runtime.sdk import HandlerInfo
from perdure.observability.logging import get_logger

log = get_logger("perdure.events")


@dataclass(frozen=True)
class Invocation:
    """Where an event belongs to.

    Args:
        id: The invocation's id.
        handler: Service, handler and kind.
        key: The key of the virtual object or workflow; None for a plain service.
    """

    id: str
    handler: HandlerInfo
    key: str | None


class AttemptOutcome(StrEnum):
    """How an attempt of a handler ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """With a terminal error: the invocation has ended."""
    RETRIED = "retried"
    """With any other error: the engine tries again."""
    INTERRUPTED = "interrupted"
    """Suspended, or its connection was lost: it goes on in another attempt."""


# Events are not frozen: a frozen dataclass takes four times as long to make, and a saga makes forty.
@dataclass(slots=True)
class Event:
    """Something that happened in a handler. Listeners share it, so none changes it.

    Args:
        invocation: In which invocation.
    """

    invocation: Invocation


@dataclass(slots=True)
class InvocationStarted(Event):
    """An invocation began its first attempt."""


@dataclass(slots=True)
class InvocationEnded(Event):
    """An invocation came to its end.

    Args:
        error: The terminal error that ended it; None when it succeeded.
        duration: Since it began; None when it began in another process.
    """

    error: BaseException | None
    duration: timedelta | None


@dataclass(slots=True)
class WorkflowStarted(InvocationStarted):
    """A workflow's main handler began, once for each key."""


@dataclass(slots=True)
class WorkflowEnded(InvocationEnded):
    """A workflow's main handler came to its end, and so did the rollback that it waited for."""


@dataclass(slots=True)
class CompensationStarted(InvocationStarted):
    """A compensation began. The saga tries one several times: each is an invocation of its own, and an event.

    Args:
        saga: The saga that is rolled back; None when somebody else called the compensation.
        step: The step that it undoes; None when somebody else called the compensation.
    """

    saga: str | None
    step: str | None


@dataclass(slots=True)
class CompensationEnded(InvocationEnded):
    """A compensation came to its end. One that the engine gave up after its retries is not told of its end.

    Args:
        saga: The saga that is rolled back; None when somebody else called the compensation.
        step: The step that it undoes; None when somebody else called the compensation.
    """

    saga: str | None
    step: str | None


@dataclass(slots=True)
class AttemptStarted(Event):
    """An attempt of a handler began; an invocation has one or more.

    Args:
        replays: It begins with what the journal has already.
        number: 1 for the first that this process sees; the engine doesn't tell, and its own spans are exact.
    """

    replays: bool
    number: int


@dataclass(slots=True)
class AttemptEnded(Event):
    """An attempt of a handler ended.

    Args:
        outcome: How.
        error: Why it failed, if it did.
        duration: How long it took.
    """

    outcome: AttemptOutcome
    error: BaseException | None
    duration: timedelta


@dataclass(slots=True)
class RunAttemptStarted(Event):
    """An attempt of a run began.

    Args:
        run: The run's name.
        within: The activity that the run is a part of, see `perdure.observability.activities`: a step's.
    """

    run: str
    within: Event | None = None


@dataclass(slots=True)
class RunAttemptEnded(Event):
    """An attempt of a run ended.

    Args:
        run: The run's name.
        error: Why it failed, if it did.
        duration: How long it took.
        cut_off: Its handler's attempt ended before it; what became of it, nobody knows.
    """

    run: str
    error: BaseException | None
    duration: timedelta
    cut_off: bool = False


@dataclass(slots=True)
class StateRead(Event):
    """An entry of state was asked for.

    Args:
        key: The entry's name.
    """

    key: str


@dataclass(slots=True)
class StateWritten(Event):
    """An entry of state was written.

    Args:
        key: The entry's name.
        size: The value's size in bytes, as it is stored.
    """

    key: str
    size: int


@dataclass(slots=True)
class StateCleared(Event):
    """An entry of state was removed, or all of them.

    Args:
        key: The entry's name; ``*`` for all.
    """

    key: str


@dataclass(slots=True)
class SagaStarted(Event):
    """A saga began: it recorded its first step.

    Args:
        saga: The saga's id.
    """

    saga: str


@dataclass(slots=True)
class SagaStepAdded(Event):
    """A saga recorded a step, before the step's action.

    Args:
        saga: The saga's id.
        step: The step's name.
        compensation: ``service/handler`` that undoes it; None for a step that needs nothing.
    """

    saga: str
    step: str
    compensation: str | None


@dataclass(slots=True)
class SagaStepEnded(Event):
    """A step's action came to its end: it completed, or failed and is not tried again.

    Args:
        saga: The saga's id.
        step: The step's name.
        error: Why it failed, if it did.
    """

    saga: str
    step: str
    error: BaseException | None


@dataclass(slots=True)
class Failed(Event):
    """An attempt of a handler, or of one of its runs, failed.

    Args:
        error: Why.
        terminal: The engine does not try again.
        run: The run that failed; None when the handler did.
    """

    error: BaseException
    terminal: bool
    run: str | None


E = TypeVar("E", bound=Event)
Listener = Callable[[Any], object]


class _Listeners:
    # Replaced as a whole at each change, so that who publishes needs no lock.
    by_event: ClassVar[dict[type[Event], tuple[Listener, ...]]] = {}
    changes: ClassVar[threading.Lock] = threading.Lock()


def subscribe(event: type[E], listener: Callable[[E], object]) -> None:
    """Call a function for each event of a class, not of its subclasses.

    Args:
        event: The event's class.
        listener: A plain function; quick, since handlers wait for it.
    """
    with _Listeners.changes:
        known = _Listeners.by_event
        _Listeners.by_event = {**known, event: (*known.get(event, ()), listener)}


def unsubscribe(event: type[E], listener: Callable[[E], object]) -> None:
    """Stop calling a function.

    Args:
        event: The event's class.
        listener: What was subscribed. Nothing happens when it was not.
    """
    with _Listeners.changes:
        known = _Listeners.by_event
        left = list(known.get(event, ()))
        if listener in left:
            left.remove(listener)
        others = {each: listeners for each, listeners in known.items() if each is not event}
        _Listeners.by_event = {**others, event: tuple(left)} if left else others


def wanted(event: type[Event]) -> bool:
    """Tell if anybody subscribed to an event's class, so that it is worth the while to make one."""
    return event in _Listeners.by_event


def all_wanted() -> Collection[type[Event]]:
    """Return the classes that anybody subscribed to, for who asks about several."""
    return _Listeners.by_event


def publish(event: Event) -> None:
    """Tell whoever subscribed that something happened.

    Args:
        event: What happened.
    """
    for listener in _Listeners.by_event.get(type(event), ()):
        try:
            listener(event)
        except Exception:
            name = getattr(listener, "__qualname__", repr(listener))
            log.exception("a hook failed; the invocation goes on", hook=name, on=type(event).__name__)
