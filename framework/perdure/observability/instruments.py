"""Counters, gauges and histograms, kept in dictionaries and read on collection.

They are observable instruments of the OpenTelemetry API, so a process may export them in any way; `perdure.serving`
serves them at ``/metrics`` in the Prometheus format. Measuring through the SDK costs twenty times as much as a
dictionary and reduces the throughput of sagas. The API has no observable histogram: histograms are exported to
Prometheus directly, and recorded through the API only if the process has its own meter provider.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from threading import Event, Lock
from typing import ClassVar, Final

from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Histogram, Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from perdure._runtime.plain_text import display_name

LabelValues = tuple[str, ...]
Reader = Callable[[], Iterable[tuple[float, Mapping[str, str]]]]

MAX_LABEL_SETS: Final = 1000
"""The limit of label sets per metric; further label sets count as `OTHER`, so that memory is bounded."""

OTHER: Final = "other"


def _new_labels(values: LabelValues, known: Mapping[LabelValues, object]) -> LabelValues:
    """Return label values that Prometheus can encode, or `OTHER` beyond the limit of label sets."""
    values = tuple(map(display_name, values))
    return values if values in known or len(known) < MAX_LABEL_SETS else (OTHER,) * len(values)


@dataclass(frozen=True, eq=False)  # compared by identity, since every count looks the metric up
class Metric:
    """Base of all metrics.

    Args:
        name: The OpenTelemetry name; Prometheus replaces dots by ``_``.
        description: The meaning, as a sentence.
        labels: The label names.
        unit: The UCUM unit: ``1`` or ``s``.
    """

    kind: ClassVar[str]

    name: str
    description: str
    labels: tuple[str, ...] = ()
    unit: str = "1"

    def values_of(self, labels: Mapping[str, str]) -> LabelValues:
        """Return the label values in the order of the catalogue, or raise ValueError for other labels."""
        try:
            values = tuple([labels[label] for label in self.labels])
        except KeyError:
            values = None
        if values is None or len(values) != len(labels):
            expected = ", ".join(self.labels) or "none"
            raise ValueError(f"{self.name} has the labels {expected}; got {', '.join(labels) or 'none'}")
        return values

    @property
    def prometheus_name(self) -> str:
        """The name in Prometheus."""
        name = self.name.replace(".", "_")
        return f"{name}_seconds" if self.unit == "s" else name


@dataclass(frozen=True, eq=False)
class CounterMetric(Metric):
    """Monotonic counter."""

    kind = "counter"

    _counts: dict[LabelValues, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Register the observable instrument."""
        metrics.get_meter("perdure").create_observable_counter(
            self.name, callbacks=[self._observe], unit=self.unit, description=self.description
        )

    def count(self, amount: int = 1, /, **labels: str) -> None:
        """Add an amount, or raise ValueError for labels other than the catalogue's."""
        self.count_at(self.values_of(labels), amount)

    def count_at(self, values: LabelValues, amount: int = 1) -> None:
        """Add an amount for label values in the order of the catalogue, without checks; for frequent events."""
        counts = self._counts
        with _lock:
            if values not in counts:
                values = _new_labels(values, counts)
            counts[values] = counts.get(values, 0) + amount

    def _observe(self, _: CallbackOptions) -> list[Observation]:
        with _lock:
            counts = list(self._counts.items())
        return [Observation(value, dict(zip(self.labels, key, strict=True))) for key, value in counts]

    @property
    def prometheus_name(self) -> str:
        """The name in Prometheus."""
        return f"{self.name.replace('.', '_')}_total"


@dataclass(frozen=True, eq=False)
class GaugeMetric(Metric):
    """Value that is read on collection."""

    kind = "gauge"

    _readers: list[Reader] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Register the observable instrument."""
        unit = "" if self.unit == "1" else self.unit  # the Prometheus exporter treats a gauge with unit 1 as a ratio
        metrics.get_meter("perdure").create_observable_gauge(
            self.name, callbacks=[self._observe], unit=unit, description=self.description
        )

    def observe_with(self, read: Reader) -> Callable[[], None]:
        """Add a reader and return a function that removes it.

        Args:
            read: Returns each value with its labels. The collecting thread calls it, so it must not block.
        """
        with _lock:
            self._readers.append(read)

        def stop() -> None:
            with _lock:
                self._readers.remove(read)

        return stop

    def _observe(self, _: CallbackOptions) -> list[Observation]:
        with _lock:
            readers = list(self._readers)
        return [Observation(value, dict(labels)) for read in readers for value, labels in read()]


@dataclass(frozen=True, eq=False)
class HistogramMetric(Metric):
    """Distribution of measurements.

    Args:
        bounds: The ascending upper bounds of the buckets, in the metric's unit.
    """

    kind = "histogram"

    bounds: tuple[float, ...] = ()
    _distributions: dict[LabelValues, _Distribution] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Register for the Prometheus collector."""
        _histograms.append(self)

    def record(self, value: float, /, **labels: str) -> None:
        """Record a measurement, or raise ValueError for labels other than the catalogue's."""
        self.record_at(self.values_of(labels), value)

    def record_at(self, values: LabelValues, value: float) -> None:
        """Record a measurement for label values in the order of the catalogue, without checks; for frequent events."""
        distributions = self._distributions
        with _lock:
            distribution = distributions.get(values)
            if distribution is None:
                values = _new_labels(values, distributions)
                distribution = distributions.setdefault(values, _Distribution([0] * (len(self.bounds) + 1)))
            distribution.counts[bisect_left(self.bounds, value)] += 1
            distribution.total += value
        if _has_own_provider.is_set():
            _histogram(self).record(value, dict(zip(self.labels, values, strict=True)))

    def family(self) -> HistogramMetricFamily | None:
        """Return the metric family for Prometheus; None without measurements."""
        with _lock:
            items = [(key, list(each.counts), each.total) for key, each in self._distributions.items()]
        family = HistogramMetricFamily(self.prometheus_name, self.description, labels=self.labels)
        bounds = [*map(floatToGoString, self.bounds), "+Inf"]
        for key, counts, total in items:
            family.add_metric(key, list(zip(bounds, accumulate(counts), strict=True)), total)
        return family if items else None


@dataclass
class _Distribution:
    """Bucket counts and sum of the measurements of one label set; the last bucket is above all bounds."""

    counts: list[int]
    total: float = 0.0


_lock = Lock()
_has_own_provider = Event()  # set if the process has its own meter provider
_histograms: list[HistogramMetric] = []


@cache
def _histogram(metric: HistogramMetric) -> Histogram:
    return metrics.get_meter("perdure").create_histogram(
        metric.name,
        unit=metric.unit,
        description=metric.description,
        explicit_bucket_boundaries_advisory=list(metric.bounds),
    )


class _Histograms(Collector):
    """Exports histograms to Prometheus."""

    def collect(self) -> Iterator[HistogramMetricFamily]:
        for metric in _histograms:
            family = metric.family()
            if family is not None:
                yield family


@cache
def export_to_prometheus() -> None:
    """Install the Prometheus meter provider, once; keep a meter provider that the user has installed."""
    ours = MeterProvider(metric_readers=[PrometheusMetricReader(scope_info_enabled=False)])
    metrics.set_meter_provider(ours)
    if metrics.get_meter_provider() is ours:
        REGISTRY.register(_Histograms())
    else:
        _has_own_provider.set()


def prometheus_text() -> tuple[bytes, str]:
    """Return the metrics of this process in the Prometheus format, and the content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
