"""Catalogue of perdure's metrics, and the event listeners that count them.

Labels contain names from code, never IDs, so label sets are bounded. Replays are not counted.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from perdure.errors import TerminalError
from perdure.observability.events import (
    AttemptEnded,
    InvocationEnded,
    RunAttemptEnded,
    SagaStarted,
    SagaStepEnded,
    subscribe,
)
from perdure.observability.instruments import CounterMetric, GaugeMetric, HistogramMetric, Metric

# --- handlers ---------------------------------------------------------------------------------------------------------

ATTEMPTS: Final = CounterMetric("perdure.invocation.attempts", "Attempts of invocations.", ("service", "handler"))
ATTEMPT_DURATION: Final = HistogramMetric(
    "perdure.invocation.attempt.duration",
    "Durations of attempts by outcome: succeeded, failed (terminal error), retried (other error), interrupted "
    "(suspended or disconnected).",
    ("service", "handler", "outcome"),
    unit="s",
    bounds=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
INVOCATIONS: Final = CounterMetric(
    "perdure.invocations",
    "Ended invocations by outcome: succeeded, failed (terminal error).",
    ("service", "handler", "outcome"),
)
RUNS: Final = CounterMetric(
    "perdure.runs",
    "Attempts of runs by outcome: succeeded, failed (terminal error), retried (other error, including the last attempt "
    "of a run), interrupted (with the handler's attempt).",
    ("service", "handler", "outcome"),
)
GUARDRAILS: Final = CounterMetric(
    "perdure.guardrail.violations",
    "Violations of guardrails by policy: strict rejects them, warn permits them.",
    ("check", "policy"),
)
SECURITY_REFUSALS: Final = CounterMetric(
    "perdure.security.refusals",
    "Requests that violate a security rule; the mode permissive permits them.",
    ("rule", "mode"),
)

# --- processes --------------------------------------------------------------------------------------------------------

THREADS_LIMIT: Final = GaugeMetric("perdure.threads.limit", "Maximum number of threads of blocking functions.")
THREADS_BUSY: Final = GaugeMetric("perdure.threads.busy", "Threads that run a blocking function.")
THREADS_WAITING: Final = GaugeMetric(
    "perdure.threads.waiting", "Blocking functions that wait for a thread; above 0, the threads are used up."
)

# --- sagas ------------------------------------------------------------------------------------------------------------

SAGAS: Final = CounterMetric("perdure.saga.started", "Sagas that recorded their first step.", ("service",))
STEPS: Final = CounterMetric(
    "perdure.saga.steps",
    "Ended steps of sagas by outcome: completed, failed (permanently).",
    ("service", "step", "outcome"),
)
COMPENSATIONS: Final = CounterMetric(
    "perdure.saga.compensations",
    "Compensation attempts, by the state of the step afterwards.",
    ("service", "step", "state"),
)
ROLLBACKS: Final = CounterMetric("perdure.saga.rollbacks", "Ended rollbacks by outcome.", ("service", "outcome"))
OPERATOR_ACTIONS: Final = CounterMetric(
    "perdure.saga.operator_actions", "Operator actions on dead letters and held steps.", ("service", "action")
)
OPEN_SAGAS: Final = GaugeMetric(
    "perdure.saga.open",
    "Open sagas by phase: running, paused, compensating, needs_attention, orphaned.",
    ("service", "phase"),
)
OLDEST_SAGA: Final = GaugeMetric(
    "perdure.saga.oldest",
    "Age of the oldest open saga of a phase, from its start.",
    ("service", "phase"),
    unit="s",
)
DEAD_LETTERS: Final = GaugeMetric(
    "perdure.dead_letters.open", "Open dead letters: steps whose compensation failed permanently.", ("service",)
)
OLDEST_DEAD_LETTER: Final = GaugeMetric(
    "perdure.dead_letters.oldest", "Age of the oldest open dead letter.", ("service",), unit="s"
)

HELD_STEPS: Final = GaugeMetric(
    "perdure.held_steps.open", "Held steps: failed steps that wait for an operator.", ("service",)
)
HELD_STEPS_DUE: Final = GaugeMetric(
    "perdure.held_steps.due",
    "Held steps that have used more than half of the time until their deadline.",
    ("service",),
)

# --- approvals --------------------------------------------------------------------------------------------------------

APPROVALS_DECIDED: Final = CounterMetric(
    "perdure.approvals.decided",
    "Closed approvals by outcome: approved, rejected, timed_out, withdrawn.",
    ("outcome",),
)
OPEN_APPROVALS: Final = GaugeMetric("perdure.approvals.open", "Open approvals.")
OLDEST_APPROVAL: Final = GaugeMetric(
    "perdure.approvals.oldest", "Age of the oldest open approval; 0 if there is none.", unit="s"
)
OVERDUE_APPROVALS: Final = GaugeMetric("perdure.approvals.overdue", "Open approvals whose deadline has passed.")

# --- reconcilers ------------------------------------------------------------------------------------------------------

STUCK: Final = GaugeMetric(
    "perdure.invocations.stuck",
    "Stuck invocations by status: paused, hanging (no progress), backing_off (after at least two failed attempts).",
    ("service", "status"),
)
OLDEST_STUCK: Final = GaugeMetric(
    "perdure.invocations.stuck.oldest",
    "Age of the oldest stuck invocation, from its start.",
    ("service", "status"),
    unit="s",
)
RECONCILER_REPAIRS: Final = CounterMetric(
    "perdure.reconciler.repairs", "Repairs by the reconciler, by kind of orphaned work.", ("service", "kind")
)
RECONCILER_LAST_SCAN: Final = GaugeMetric(
    "perdure.reconciler.last_scan",
    "Unix time of the last complete scan of a reconciler, including its repairs.",
    ("reconciler",),
    "s",
)
ALERTS: Final = CounterMetric(
    "perdure.reconciler.alerts", "Alerts sent to the webhook by outcome: delivered, exhausted.", ("kind", "outcome")
)

CATALOGUE: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All metrics above, in their order."""


# --- listeners --------------------------------------------------------------------------------------------------------


@cache
def record_metrics() -> None:
    """Start counting events in this process; further calls have no effect."""
    subscribe(AttemptEnded, _count_attempt)
    subscribe(InvocationEnded, _count_invocation)
    subscribe(RunAttemptEnded, _count_run)
    subscribe(SagaStarted, _count_saga)
    subscribe(SagaStepEnded, _count_step)


# The label values are in the order of the catalogue; a test checks this.


def _count_attempt(event: AttemptEnded) -> None:
    handler = event.invocation.handler
    ATTEMPT_DURATION.record_at((handler.service, handler.handler, event.outcome), event.duration.total_seconds())


def _count_invocation(event: InvocationEnded) -> None:
    handler = event.invocation.handler
    INVOCATIONS.count_at((handler.service, handler.handler, "succeeded" if event.error is None else "failed"))


def _count_run(event: RunAttemptEnded) -> None:
    handler = event.invocation.handler
    outcome = "interrupted" if event.interrupted else "succeeded"
    if event.error is not None:
        outcome = "failed" if isinstance(event.error, TerminalError) else "retried"
    RUNS.count_at((handler.service, handler.handler, outcome))


def _count_saga(event: SagaStarted) -> None:
    SAGAS.count_at((event.invocation.handler.service,))


def _count_step(event: SagaStepEnded) -> None:
    STEPS.count_at((event.invocation.handler.service, event.step, "completed" if event.error is None else "failed"))
