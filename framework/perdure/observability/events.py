"""Typed events of handlers, on which hooks, metrics and traces are based.

A listener subscribes to an event class. It is a plain function and must be fast, since handlers wait for it. Its
exceptions are logged and do not affect the invocation. Without listeners, an event costs one lookup in an empty dict.

Replays publish no events: the event of a journal entry is published when the entry is created. If the process dies or
loses its connection before the engine stores the entry, the entry is created again, and its event is repeated.
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
    """Invocation of an event.

    Args:
        id: The invocation ID.
        handler: The service, handler and kind.
        key: The key of the virtual object or workflow; None for a service.
    """

    id: str
    handler: HandlerInfo
    key: str | None


class AttemptOutcome(StrEnum):
    """Outcome of an attempt of a handler."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Terminal error: the invocation has ended."""
    RETRIED = "retried"
    """Other error: the engine starts another attempt."""
    INTERRUPTED = "interrupted"
    """Suspended or disconnected: the invocation continues in another attempt."""


# Not frozen: a frozen dataclass takes four times as long to create, and a saga creates forty events.
@dataclass(slots=True)
class Event:
    """Base of all events; listeners share an event and must not change it.

    Args:
        invocation: The invocation in which the event occurred.
    """

    invocation: Invocation


@dataclass(slots=True)
class InvocationStarted(Event):
    """An invocation started its first attempt."""


@dataclass(slots=True)
class InvocationEnded(Event):
    """An invocation ended.

    Args:
        error: The terminal error; None if the invocation succeeded.
        duration: The duration; None if the invocation started in another process.
    """

    error: BaseException | None
    duration: timedelta | None


@dataclass(slots=True)
class WorkflowStarted(InvocationStarted):
    """A workflow's main handler started, once per key."""


@dataclass(slots=True)
class WorkflowEnded(InvocationEnded):
    """A workflow's main handler ended, including the rollback that it waited for."""


@dataclass(slots=True)
class CompensationStarted(InvocationStarted):
    """A compensation started; each retry by the rollback is an invocation of its own.

    Args:
        saga: The saga that is rolled back; None if the compensation was called directly.
        step: The step that is compensated; None if the compensation was called directly.
    """

    saga: str | None
    step: str | None


@dataclass(slots=True)
class CompensationEnded(InvocationEnded):
    """A compensation ended; not published if the engine killed it after its last retry.

    Args:
        saga: The saga that is rolled back; None if the compensation was called directly.
        step: The step that is compensated; None if the compensation was called directly.
    """

    saga: str | None
    step: str | None


@dataclass(slots=True)
class AttemptStarted(Event):
    """An attempt of a handler started.

    Args:
        replays: Whether the attempt starts with a replay of the journal.
        number: The number of the attempt in this process, from 1; the engine does not send the exact number.
    """

    replays: bool
    number: int


@dataclass(slots=True)
class AttemptEnded(Event):
    """An attempt of a handler ended.

    Args:
        outcome: The outcome.
        error: The error of a failed attempt.
        duration: The duration.
    """

    outcome: AttemptOutcome
    error: BaseException | None
    duration: timedelta


@dataclass(slots=True)
class RunAttemptStarted(Event):
    """An attempt of a run started.

    Args:
        run: The name of the run.
        parent: The enclosing activity, see `perdure.observability.activities`.
    """

    run: str
    parent: Event | None = None


@dataclass(slots=True)
class RunAttemptEnded(Event):
    """An attempt of a run ended.

    Args:
        run: The name of the run.
        error: The error of a failed attempt.
        duration: The duration.
        interrupted: Whether the handler's attempt ended first, so that the outcome of the run is unknown.
    """

    run: str
    error: BaseException | None
    duration: timedelta
    interrupted: bool = False


@dataclass(slots=True)
class StateRead(Event):
    """A state value was read.

    Args:
        key: The state key.
    """

    key: str


@dataclass(slots=True)
class StateWritten(Event):
    """A state value was written.

    Args:
        key: The state key.
        size: The size of the stored value in bytes.
    """

    key: str
    size: int


@dataclass(slots=True)
class StateCleared(Event):
    """A state value was removed.

    Args:
        key: The state key; ``*`` for all values.
    """

    key: str


@dataclass(slots=True)
class SagaStarted(Event):
    """A saga recorded its first step.

    Args:
        saga: The saga ID.
    """

    saga: str


@dataclass(slots=True)
class SagaStepAdded(Event):
    """A saga recorded a step, before the step's action.

    Args:
        saga: The saga ID.
        step: The name of the step.
        compensation: The compensation, ``service/handler``; None for a step without compensation.
    """

    saga: str
    step: str
    compensation: str | None


@dataclass(slots=True)
class SagaStepEnded(Event):
    """The action of a step completed or failed permanently.

    Args:
        saga: The saga ID.
        step: The name of the step.
        error: The error of a failed step.
    """

    saga: str
    step: str
    error: BaseException | None


@dataclass(slots=True)
class Failed(Event):
    """An attempt of a handler, or of one of its runs, failed.

    Args:
        error: The error.
        terminal: Whether the error is terminal, that is, not retried.
        run: The name of the run; None if the handler failed.
    """

    error: BaseException
    terminal: bool
    run: str | None


E = TypeVar("E", bound=Event)
Listener = Callable[[Any], object]


class _Listeners:
    # Replaced as a whole at each change, so that publishing needs no lock.
    by_event: ClassVar[dict[type[Event], tuple[Listener, ...]]] = {}
    changes: ClassVar[threading.Lock] = threading.Lock()


def subscribe(event: type[E], listener: Callable[[E], object]) -> None:
    """Call a listener for each event of exactly this class.

    Args:
        event: The event class.
        listener: A fast, plain function.
    """
    with _Listeners.changes:
        by_event = _Listeners.by_event
        _Listeners.by_event = {**by_event, event: (*by_event.get(event, ()), listener)}


def unsubscribe(event: type[E], listener: Callable[[E], object]) -> None:
    """Remove a listener, if it is subscribed."""
    with _Listeners.changes:
        remaining = list(_Listeners.by_event.get(event, ()))
        if listener in remaining:
            remaining.remove(listener)
        others = {each: listeners for each, listeners in _Listeners.by_event.items() if each is not event}
        _Listeners.by_event = {**others, event: tuple(remaining)} if remaining else others


def has_listeners(event: type[Event]) -> bool:
    """Return whether an event class has listeners."""
    return event in _Listeners.by_event


def subscribed_events() -> Collection[type[Event]]:
    """Return the event classes that have listeners."""
    return _Listeners.by_event


def publish(event: Event) -> None:
    """Call the listeners of an event."""
    for listener in _Listeners.by_event.get(type(event), ()):
        try:
            listener(event)
        except BaseException:
            name = getattr(listener, "__qualname__", repr(listener))
            log.exception("hook failed; the invocation continues", hook=name, event_type=type(event).__name__)
