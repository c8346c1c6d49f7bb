"""The catalogue of perdure's metrics: each one's name, unit, labels and meaning, in one place.

They go through the OpenTelemetry API, so a process may export them as it likes; `perdure.serving` serves them at
``/metrics`` in Prometheus' format. Label sets are bounded: names from code, never ids. What happens in a handler is
counted when it happens, not when it is replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Counter
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest


@dataclass(frozen=True)
class CounterMetric:
    """A number that only grows.

    Args:
        name: Its name with OpenTelemetry; Prometheus shows dots as ``_`` and adds ``_total``.
        meaning: What it counts.
        labels: What it is counted by.
    """

    name: str
    meaning: str
    labels: tuple[str, ...]

    def count(self, amount: int = 1, /, **labels: str) -> None:
        """Count.

        Args:
            amount: By how much.
            labels: A value for each of the metric's labels.

        Raises:
            ValueError: The labels are not the catalogue's.
        """
        if set(labels) != set(self.labels):
            raise ValueError(f"{self.name} is counted by {', '.join(self.labels)}, not by {', '.join(labels)}")
        _counter(self).add(amount, labels)


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

CATALOGUE: Final = (ATTEMPTS, COMPENSATIONS, ROLLBACKS, ACTS, SENTINEL_FINDS)


@cache
def _counter(metric: CounterMetric) -> Counter:
    return metrics.get_meter("perdure").create_counter(metric.name, unit="1", description=metric.meaning)


@cache
def export_to_prometheus() -> None:
    """Collect this process's metrics for `prometheus_text`; once, unless the user has set a provider before."""
    metrics.set_meter_provider(MeterProvider(metric_readers=[PrometheusMetricReader()]))


def prometheus_text() -> tuple[bytes, str]:
    """Return this process's metrics as Prometheus reads them, and their content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
