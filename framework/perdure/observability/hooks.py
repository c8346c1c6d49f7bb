"""Hooks: functions of the user's that are told what happens in the handlers of this process.

    add_hooks(ObservabilityHooks(on_error=lambda failed: alarms.count(failed.invocation.handler.service)))

Each hook is a plain function that takes one event, see `perdure.observability.events`. A hook is called when something
happens, not when it is replayed: twice only when a process died, or lost its connection, before the engine had learnt
of it the first time. An invocation that never got as far as its first entry in the journal starts anew in another
process, so there its start is told again. Suspensions and repeated attempts are not told.

A hook must be quick, since handlers wait for it, and it must not use a context. What it raises is logged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from structlog.stdlib import BoundLogger

from perdure.errors import ConfigurationError
from perdure.observability import events
from perdure.observability.logging import get_logger

__all__ = ["ObservabilityHooks", "add_hooks", "default_hooks", "remove_hooks"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservabilityHooks:
    """A set of hooks; those left out are not called.

    Args:
        on_invocation_start: An invocation began its first attempt.
        on_invocation_end: An invocation came to its end, well or with a terminal error.
        on_state_get: An entry of state was asked for.
        on_state_set: An entry of state was written.
        on_state_clear: An entry of state was removed, or all of them.
        on_saga_start: A saga recorded its first step.
        on_saga_step_added: A saga recorded a step, before the step's action.
        on_compensation_start: A compensation began.
        on_compensation_end: A compensation came to its end.
        on_workflow_start: A workflow's main handler began.
        on_workflow_end: A workflow's main handler came to its end.
        on_error: An attempt of a handler, or of one of its runs, failed.

    Raises:
        ConfigurationError: A hook is a coroutine function, which nobody would await.
    """

    on_invocation_start: Callable[[events.InvocationStarted], object] | None = None
    on_invocation_end: Callable[[events.InvocationEnded], object] | None = None
    on_state_get: Callable[[events.StateRead], object] | None = None
    on_state_set: Callable[[events.StateWritten], object] | None = None
    on_state_clear: Callable[[events.StateCleared], object] | None = None
    on_saga_start: Callable[[events.SagaStarted], object] | None = None
    on_saga_step_added: Callable[[events.SagaStepAdded], object] | None = None
    on_compensation_start: Callable[[events.CompensationStarted], object] | None = None
    on_compensation_end: Callable[[events.CompensationEnded], object] | None = None
    on_workflow_start: Callable[[events.WorkflowStarted], object] | None = None
    on_workflow_end: Callable[[events.WorkflowEnded], object] | None = None
    on_error: Callable[[events.Failed], object] | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            if inspect.iscoroutinefunction(getattr(self, each.name)):
                raise ConfigurationError(f"{each.name}: a hook is a plain function; nobody would await a coroutine")


_EVENT_OF: dict[str, type[events.Event]] = {
    "on_invocation_start": events.InvocationStarted,
    "on_invocation_end": events.InvocationEnded,
    "on_state_get": events.StateRead,
    "on_state_set": events.StateWritten,
    "on_state_clear": events.StateCleared,
    "on_saga_start": events.SagaStarted,
    "on_saga_step_added": events.SagaStepAdded,
    "on_compensation_start": events.CompensationStarted,
    "on_compensation_end": events.CompensationEnded,
    "on_workflow_start": events.WorkflowStarted,
    "on_workflow_end": events.WorkflowEnded,
    "on_error": events.Failed,
}


def add_hooks(hooks: ObservabilityHooks) -> None:
    """Call these hooks from now on, beside those that are there already, in the order in which they were added.

    Args:
        hooks: The hooks, for all handlers of this process.
    """
    for event, hook in _hooks_of(hooks):
        events.subscribe(event, hook)


def remove_hooks(hooks: ObservabilityHooks) -> None:
    """Call these hooks no more.

    Args:
        hooks: What was added. Nothing happens when it was not.
    """
    for event, hook in _hooks_of(hooks):
        events.unsubscribe(event, hook)


def _hooks_of(hooks: ObservabilityHooks) -> list[tuple[type[events.Event], Callable[[Any], object]]]:
    given = ((event, getattr(hooks, name)) for name, event in _EVENT_OF.items())
    return [(event, hook) for event, hook in given if hook is not None]


def default_hooks(logger: BoundLogger | None = None) -> ObservabilityHooks:
    """Return hooks that log, as those of the Go original do: invocations, writes to state, errors.

    Args:
        logger: Where to; perdure's own logger by default, which adds invocation, service, handler, key and trace.
    """
    log = logger or get_logger("perdure.hooks")

    def started(event: events.InvocationStarted) -> None:
        log.info("invocation started", target=str(event.invocation.handler))

    def ended(event: events.InvocationEnded) -> None:
        log.info(
            "invocation ended",
            target=str(event.invocation.handler),
            seconds=None if event.duration is None else round(event.duration.total_seconds(), 6),
            error=None if event.error is None else str(event.error),
        )

    def written(event: events.StateWritten) -> None:
        log.debug("state written", state=event.key, bytes=event.size)

    def failed(event: events.Failed) -> None:
        tell = log.error if event.terminal else log.warning
        tell("attempt failed", terminal=event.terminal, run=event.run, error=repr(event.error))

    return ObservabilityHooks(
        on_invocation_start=started, on_invocation_end=ended, on_state_set=written, on_error=failed
    )
