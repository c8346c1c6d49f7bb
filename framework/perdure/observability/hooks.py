"""User-defined functions that are called on events in the handlers of this process.

    add_hooks(ObservabilityHooks(on_error=lambda failed: alarms.count(failed.invocation.handler.service)))

A hook is a plain function of one event, see `perdure.observability.events`. Replays call no hooks. An event is repeated
only if the process dies or loses its connection before the engine stores its journal entry. The start of an invocation
without journal entries is repeated in another process. Suspensions and further attempts have no hooks.

A hook must be fast, since handlers wait for it, and it must not use a context. Its exceptions are logged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from structlog.stdlib import BoundLogger

from perdure._runtime.plain_text import text_of
from perdure.errors import ConfigurationError
from perdure.observability import events
from perdure.observability.logging import get_logger


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservabilityHooks:
    """Set of hooks, all optional.

    Args:
        on_invocation_start: An invocation started its first attempt.
        on_invocation_end: An invocation succeeded or ended with a terminal error.
        on_state_get: A state value was read.
        on_state_set: A state value was written.
        on_state_clear: A state value, or all of them, was removed.
        on_saga_start: A saga recorded its first step.
        on_saga_step_added: A saga recorded a step, before the step's action.
        on_compensation_start: A compensation started.
        on_compensation_end: A compensation ended.
        on_workflow_start: A workflow's main handler started.
        on_workflow_end: A workflow's main handler ended.
        on_error: An attempt of a handler, or of one of its runs, failed.

    Raises:
        ConfigurationError: A hook is a coroutine function.
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
        for field in fields(self):
            if inspect.iscoroutinefunction(getattr(self, field.name)):
                raise ConfigurationError(f"{field.name}: a hook must be a plain function, not a coroutine function")


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
    """Add hooks for all handlers of this process, after those that were added before.

    Args:
        hooks: The hooks.
    """
    for event, hook in _hooks_of(hooks):
        events.subscribe(event, hook)


def remove_hooks(hooks: ObservabilityHooks) -> None:
    """Remove hooks, if they were added.

    Args:
        hooks: The hooks.
    """
    for event, hook in _hooks_of(hooks):
        events.unsubscribe(event, hook)


def _hooks_of(hooks: ObservabilityHooks) -> list[tuple[type[events.Event], Callable[[Any], object]]]:
    hooks_by_event = ((event, getattr(hooks, name)) for name, event in _EVENT_OF.items())
    return [(event, hook) for event, hook in hooks_by_event if hook is not None]


def default_hooks(logger: BoundLogger | None = None) -> ObservabilityHooks:
    """Return hooks that log invocations, state writes and errors, as in the Go original.

    Args:
        logger: The logger; by default perdure's, which adds invocation, service, handler, key and trace.
    """
    log = logger or get_logger("perdure.hooks")

    def started(event: events.InvocationStarted) -> None:
        log.info("invocation started", target=str(event.invocation.handler))

    def ended(event: events.InvocationEnded) -> None:
        log.info(
            "invocation ended",
            target=str(event.invocation.handler),
            seconds=None if event.duration is None else round(event.duration.total_seconds(), 6),
            error=None if event.error is None else text_of(event.error),
        )

    def written(event: events.StateWritten) -> None:
        log.debug("state written", state=event.key, bytes=event.size)

    def failed(event: events.Failed) -> None:
        log_failure = log.error if event.terminal else log.warning
        log_failure("attempt failed", terminal=event.terminal, run=event.run, error=text_of(event.error, repr))

    return ObservabilityHooks(
        on_invocation_start=started, on_invocation_end=ended, on_state_set=written, on_error=failed
    )
