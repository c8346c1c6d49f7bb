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


def _attempt(event: AttemptEnded) -> None:
    handler = event.invocation.handler
    ATTEMPT_DURATION.record(
        event.duration.total_seconds(), service=handler.service, handler=handler.handler, outcome=event.outcome.value
    )


def _invocation(event: InvocationEnded) -> None:
    handler = event.invocation.handler
    outcome = "succeeded" if event.error is None else "failed"
    INVOCATIONS.count(service=handler.service, handler=handler.handler, outcome=outcome)


def _run(event: RunAttemptEnded) -> None:
    handler = event.invocation.handler
    outcome = "succeeded"
    if event.error is not None:
        outcome = "failed" if isinstance(event.error, TerminalError) else "retried"
    RUNS.count(service=handler.service, handler=handler.handler, outcome=outcome)


def _saga(event: SagaStarted) -> None:
    SAGAS.count(service=event.invocation.handler.service)


def _step(event: SagaStepEnded) -> None:
    outcome = "completed" if event.error is None else "failed"
    STEPS.count(service=event.invocation.handler.service, step=event.step, outcome=outcome)
