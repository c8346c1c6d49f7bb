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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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
            counts[key] = counts.get(key, 0) + amount

    @property
    def prometheus_name(self) -> str:
        """Its name as Prometheus shows it."""
        return f"{self.name.replace('.', '_')}_total"


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


ATTEMPTS: Final = CounterMetric(
    "perdure.invocation.attempts", "Attempts of invocations, as the engine sent them.", ("service", "handler")
)
COMPENSATIONS: Final = CounterMetric(
    "perdure.saga.compensations",
    "Attempts to undo a step, by how the step stands after them.",
    ("service", "step", "state"),
)
ROLLBACKS: Final = CounterMetric("perdure.saga.rollbacks", "Rollbacks that ended, by outcome.", ("service", "outcome"))
ACTS: Final = CounterMetric("perdure.saga.acts", "Operators' acts on dead letters.", ("service", "act"))
SENTINEL_FINDS: Final = CounterMetric(
    "perdure.sentinel.finds", "What the sentinel found, and acted on.", ("service", "kind")
)

CATALOGUE: Final[tuple[Metric, ...]] = (ATTEMPTS, COMPENSATIONS, ROLLBACKS, ACTS, SENTINEL_FINDS)


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

    metrics.get_meter("perdure").create_observable_gauge(
        metric.name, callbacks=[observe], unit=metric.unit, description=metric.meaning
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
