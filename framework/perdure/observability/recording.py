"""Counting what happens in handlers: from events to the metrics of the catalogue."""

from __future__ import annotations

from functools import cache

from perdure.errors import TerminalError
from perdure.observability.events import (
    AttemptEnded,
    InvocationEnded,
    RunAttemptEnded,
    SagaStarted,
    SagaStepEnded,
    subscribe,
)
from perdure.observability.metrics import ATTEMPT_DURATION, INVOCATIONS, RUNS, SAGAS, STEPS

__all__ = ["record_metrics"]


@cache
def record_metrics() -> None:
    """Count from now on, in this process; once, however often it is called."""
    subscribe(AttemptEnded, _attempt)
    subscribe(InvocationEnded, _invocation)
    subscribe(RunAttemptEnded, _run)
    subscribe(SagaStarted, _saga)
    subscribe(SagaStepEnded, _step)


# The labels' values are in the catalogue's order; a test compares.


def _attempt(event: AttemptEnded) -> None:
    handler = event.invocation.handler
    ATTEMPT_DURATION.record_at((handler.service, handler.handler, event.outcome), event.duration.total_seconds())


def _invocation(event: InvocationEnded) -> None:
    handler = event.invocation.handler
    INVOCATIONS.count_at((handler.service, handler.handler, "succeeded" if event.error is None else "failed"))


def _run(event: RunAttemptEnded) -> None:
    handler = event.invocation.handler
    outcome = "interrupted" if event.cut_off else "succeeded"
    if event.error is not None:
        outcome = "failed" if isinstance(event.error, TerminalError) else "retried"
    RUNS.count_at((handler.service, handler.handler, outcome))


def _saga(event: SagaStarted) -> None:
    SAGAS.count_at((event.invocation.handler.service,))


def _step(event: SagaStepEnded) -> None:
    STEPS.count_at((event.invocation.handler.service, event.step, "completed" if event.error is None else "failed"))
