"""The catalogue of perdure's metrics: each one's name, unit, labels and meaning, in one place.

Label sets are bounded: names from code, never ids. What happens in a handler is counted when it happens, not when it is
replayed. How they are counted and shown: `perdure.observability.instruments`.
"""

from __future__ import annotations

from typing import Final

from perdure.observability.instruments import CounterMetric, GaugeMetric, HistogramMetric, Metric

# --- what happens in handlers -----------------------------------------------------------------------------------------

ATTEMPTS: Final = CounterMetric(
    "perdure.invocation.attempts", "Attempts of invocations, as the engine sent them.", ("service", "handler")
)
ATTEMPT_DURATION: Final = HistogramMetric(
    "perdure.invocation.attempt.duration",
    "How long attempts took, by how they ended: succeeded, failed (for good), retried, interrupted (suspended, or cut "
    "off).",
    ("service", "handler", "outcome"),
    unit="s",
    bounds=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
INVOCATIONS: Final = CounterMetric(
    "perdure.invocations",
    "Invocations that came to their end: succeeded, or failed with a terminal error.",
    ("service", "handler", "outcome"),
)
RUNS: Final = CounterMetric(
    "perdure.runs",
    "Attempts of runs: succeeded, failed (with a terminal error), retried (with any other; the last one of a run that "
    "is given up, too), interrupted (cut off with its handler's attempt).",
    ("service", "handler", "outcome"),
)
GUARDRAILS: Final = CounterMetric(
    "perdure.guardrail.violations",
    "Violations of guardrails, by the policy that was in force: strict refuses, warn lets it through.",
    ("check", "policy"),
)
SECURITY_REFUSALS: Final = CounterMetric(
    "perdure.security.refusals",
    "Requests that broke a security rule; let through all the same while the mode is permissive.",
    ("rule", "mode"),
)

# --- sagas ------------------------------------------------------------------------------------------------------------

SAGAS: Final = CounterMetric("perdure.saga.started", "Sagas that recorded their first step.", ("service",))
STEPS: Final = CounterMetric(
    "perdure.saga.steps",
    "Steps of sagas that came to their end: completed, or failed and not tried again.",
    ("service", "step", "outcome"),
)
COMPENSATIONS: Final = CounterMetric(
    "perdure.saga.compensations",
    "Attempts to undo a step, by how the step stands after them.",
    ("service", "step", "state"),
)
ROLLBACKS: Final = CounterMetric("perdure.saga.rollbacks", "Rollbacks that ended, by outcome.", ("service", "outcome"))
ACTS: Final = CounterMetric("perdure.saga.operator_actions", "Operators' acts on dead letters.", ("service", "act"))
OPEN_SAGAS: Final = GaugeMetric(
    "perdure.saga.open",
    "Sagas that have not come to their end: running, paused, compensating, needs_attention, orphaned.",
    ("service", "phase"),
)
OLDEST_SAGA: Final = GaugeMetric(
    "perdure.saga.oldest",
    "How long ago the oldest open saga of a phase was started.",
    ("service", "phase"),
    unit="s",
)
DEAD_LETTERS: Final = GaugeMetric(
    "perdure.dead_letters.open", "Steps that could not be undone and wait for an operator.", ("service",)
)
OLDEST_DEAD_LETTER: Final = GaugeMetric(
    "perdure.dead_letters.oldest", "How long the oldest dead letter has waited.", ("service",), unit="s"
)

# --- approvals --------------------------------------------------------------------------------------------------------

APPROVALS_DECIDED: Final = CounterMetric(
    "perdure.approvals.decided",
    "Approvals that came to their end: approved, rejected, timed_out, withdrawn.",
    ("outcome",),
)
OPEN_APPROVALS: Final = GaugeMetric("perdure.approvals.open", "Approvals that wait for somebody.")
OLDEST_APPROVAL: Final = GaugeMetric(
    "perdure.approvals.oldest", "How long the oldest open approval has waited; 0 when there is none.", unit="s"
)
OVERDUE_APPROVALS: Final = GaugeMetric(
    "perdure.approvals.overdue", "Approvals that are open although the time of their stage is over."
)

# --- what the reconciler sees in the engine
# -----------------------------------------------------------------------------

STUCK: Final = GaugeMetric(
    "perdure.invocations.stuck",
    "Invocations that don't get on: paused, or backing_off after two failed attempts or more.",
    ("service", "status"),
)
OLDEST_STUCK: Final = GaugeMetric(
    "perdure.invocations.stuck.oldest",
    "How long ago the oldest of them was started.",
    ("service", "status"),
    unit="s",
)
RECONCILER_FINDS: Final = CounterMetric(
    "perdure.reconciler.finds", "What the reconciler found, and acted on.", ("service", "kind")
)
RECONCILER_LOOKED: Final = GaugeMetric(
    "perdure.reconciler.looked",
    "When a reconciler last saw the engine's tables, and could act on what it saw; seconds since 1970.",
    ("reconciler",),
    "s",
)
ALERTS: Final = CounterMetric(
    "perdure.reconciler.alerts", "Alerts that the reconciler pushed: delivered, or given up.", ("kind", "outcome")
)

CATALOGUE: Final[tuple[Metric, ...]] = (
    ATTEMPTS,
    ATTEMPT_DURATION,
    INVOCATIONS,
    RUNS,
    GUARDRAILS,
    SECURITY_REFUSALS,
    SAGAS,
    STEPS,
    COMPENSATIONS,
    ROLLBACKS,
    ACTS,
    OPEN_SAGAS,
    OLDEST_SAGA,
    DEAD_LETTERS,
    OLDEST_DEAD_LETTER,
    APPROVALS_DECIDED,
    OPEN_APPROVALS,
    OLDEST_APPROVAL,
    OVERDUE_APPROVALS,
    STUCK,
    OLDEST_STUCK,
    RECONCILER_FINDS,
    RECONCILER_LOOKED,
    ALERTS,
)
