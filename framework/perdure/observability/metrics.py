"""The catalogue of perdure's metrics: each one's name, unit, labels and meaning, in one place.

They go through the OpenTelemetry API, so a process may export them as it likes; `perdure.serving` serves them at
``/metrics`` in Prometheus' format. Label sets are bounded: names from code, never ids. What happens in a handler is
counted when it happens, not when it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import ClassVar, Final

from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Histogram, Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

LabelValues = tuple[str, ...]

MOST_LABEL_SETS: Final = 1000
"""How many sets of labels a counter keeps apart; what comes after counts as `OTHER`, so no name can fill memory."""

OTHER: Final = "other"


@dataclass(frozen=True, eq=False)  # each is itself: they are looked up at every count
class Metric:
    """What every metric has.

    Args:
        name: Its name with OpenTelemetry; Prometheus shows dots as ``_``.
        meaning: What it tells.
        labels: What it is told by.
        unit: Its unit, as UCUM spells it: ``1`` for a number of things, ``s`` for seconds.
    """

    kind: ClassVar[str]

    name: str
    meaning: str
    labels: tuple[str, ...] = ()
    unit: str = "1"

    def values_of(self, labels: Mapping[str, str]) -> LabelValues:
        """Return the values of the labels in the catalogue's order.

        Args:
            labels: A value for each of the metric's labels.

        Raises:
            ValueError: The labels are not the catalogue's.
        """
        try:
            values = tuple([labels[label] for label in self.labels])
        except KeyError:
            values = None
        if values is None or len(values) != len(labels):
            theirs = ", ".join(self.labels) or "nothing"
            raise ValueError(f"{self.name} is told by {theirs}, not by {', '.join(labels) or 'nothing'}")
        return values

    @property
    def prometheus_name(self) -> str:
        """Its name as Prometheus shows it."""
        name = self.name.replace(".", "_")
        return f"{name}_seconds" if self.unit == "s" else name


@dataclass(frozen=True, eq=False)
class CounterMetric(Metric):
    """A number that only grows.

    Counting is adding to a dictionary; the OpenTelemetry API is asked to read it when somebody collects. A counter of
    its SDK costs twenty times as much per call, which shows in a saga's throughput.
    """

    kind = "counter"

    def count(self, amount: int = 1, /, **labels: str) -> None:
        """Count.

        Args:
            amount: By how much.
            labels: A value for each of the metric's labels.

        Raises:
            ValueError: The labels are not the catalogue's.
        """
        key = self.values_of(labels)
        counts = _counts(self)
        with _lock:
            if key not in counts and len(counts) >= MOST_LABEL_SETS:
                key = (OTHER,) * len(key)
            counts[key] = counts.get(key, 0) + amount

    @property
    def prometheus_name(self) -> str:
        """Its name as Prometheus shows it."""
        return f"{self.name.replace('.', '_')}_total"


@dataclass(frozen=True, eq=False)
class GaugeMetric(Metric):
    """A number that goes up and down, and is as it is when somebody looks."""

    kind = "gauge"

    def observe_with(self, read: Callable[[], Iterable[tuple[float, Mapping[str, str]]]]) -> Callable[[], None]:
        """Have the metric read from now on.

        Args:
            read: Returns each value with its labels. Called from the thread that collects, so it must not block.

        Returns:
            A function that ends it.
        """
        readers = _readers(self)
        with _lock:
            readers.append(read)

        def stop() -> None:
            with _lock:
                readers.remove(read)

        return stop


@dataclass(frozen=True, eq=False)
class HistogramMetric(Metric):
    """How many measurements fell below each bound.

    Args:
        bounds: The bounds, rising, in the metric's unit.
    """

    kind = "histogram"

    bounds: tuple[float, ...] = ()

    def record(self, value: float, /, **labels: str) -> None:
        """Record a measurement.

        Args:
            value: In the metric's unit.
            labels: A value for each of the metric's labels.

        Raises:
            ValueError: The labels are not the catalogue's.
        """
        self.values_of(labels)
        _histogram(self).record(value, labels)


_lock = Lock()


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
    "is given up, too).",
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
ACTS: Final = CounterMetric("perdure.saga.acts", "Operators' acts on dead letters.", ("service", "act"))
OPEN_SAGAS: Final = GaugeMetric(
    "perdure.saga.open",
    "Sagas that have not come to their end: running, paused, compensating, needs_attention, lost.",
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

# --- what the sentinel sees in the engine -----------------------------------------------------------------------------

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
SENTINEL_FINDS: Final = CounterMetric(
    "perdure.sentinel.finds", "What the sentinel found, and acted on.", ("service", "kind")
)
SENTINEL_LOOKED: Final = GaugeMetric(
    "perdure.sentinel.looked", "When a sentinel last saw the engine's tables; seconds since 1970.", ("sentinel",), "s"
)
ALERTS: Final = CounterMetric(
    "perdure.sentinel.alerts", "Alerts that the sentinel pushed: delivered, or given up.", ("kind", "outcome")
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
    SENTINEL_FINDS,
    SENTINEL_LOOKED,
    ALERTS,
)


@cache
def _counts(metric: CounterMetric) -> dict[LabelValues, int]:
    counts: dict[LabelValues, int] = {}

    def observe(_: CallbackOptions) -> list[Observation]:
        with _lock:
            known = list(counts.items())
        return [Observation(value, dict(zip(metric.labels, key, strict=True))) for key, value in known]

    metrics.get_meter("perdure").create_observable_counter(
        metric.name, callbacks=[observe], unit=metric.unit, description=metric.meaning
    )
    return counts


@cache
def _readers(metric: GaugeMetric) -> list[Callable[[], Iterable[tuple[float, Mapping[str, str]]]]]:
    readers: list[Callable[[], Iterable[tuple[float, Mapping[str, str]]]]] = []

    def observe(_: CallbackOptions) -> list[Observation]:
        with _lock:
            asked = list(readers)
        return [Observation(value, dict(labels)) for read in asked for value, labels in read()]

    unit = "" if metric.unit == "1" else metric.unit  # Prometheus' exporter takes a gauge of 1 for a ratio
    metrics.get_meter("perdure").create_observable_gauge(
        metric.name, callbacks=[observe], unit=unit, description=metric.meaning
    )
    return readers


@cache
def _histogram(metric: HistogramMetric) -> Histogram:
    return metrics.get_meter("perdure").create_histogram(
        metric.name,
        unit=metric.unit,
        description=metric.meaning,
        explicit_bucket_boundaries_advisory=list(metric.bounds),
    )


@cache
def export_to_prometheus() -> None:
    """Collect this process's metrics for `prometheus_text`; once, unless the user has set a provider before."""
    metrics.set_meter_provider(MeterProvider(metric_readers=[PrometheusMetricReader(scope_info_enabled=False)]))


def prometheus_text() -> tuple[bytes, str]:
    """Return this process's metrics as Prometheus reads them, and their content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
