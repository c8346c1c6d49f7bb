"""Counters, gauges and histograms: counted in a dictionary, read when somebody collects.

They go through the OpenTelemetry API, so a process may export them as it likes; `perdure.serving` serves them at
``/metrics`` in Prometheus' format. A measurement through the API's SDK costs twenty times what adding to a dictionary
does, which shows in a saga's throughput, so the API is asked to read. It knows no histogram that is read; so those are
shown to Prometheus here, and go through the API as they come where the process has a provider of its own.
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

LabelValues = tuple[str, ...]
Reader = Callable[[], Iterable[tuple[float, Mapping[str, str]]]]

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
    """A number that only grows."""

    kind = "counter"

    _counts: dict[LabelValues, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Let the API read it."""
        metrics.get_meter("perdure").create_observable_counter(
            self.name, callbacks=[self._observe], unit=self.unit, description=self.meaning
        )

    def count(self, amount: int = 1, /, **labels: str) -> None:
        """Count.

        Args:
            amount: By how much.
            labels: A value for each of the metric's labels.

        Raises:
            ValueError: The labels are not the catalogue's.
        """
        self.count_at(self.values_of(labels), amount)

    def count_at(self, values: LabelValues, amount: int = 1) -> None:
        """Count, without a look at the labels' names: for what is counted at each event.

        Args:
            values: The values of the labels, in the catalogue's order.
            amount: By how much.
        """
        counts = self._counts
        with _lock:
            if values not in counts and len(counts) >= MOST_LABEL_SETS:
                values = (OTHER,) * len(values)
            counts[values] = counts.get(values, 0) + amount

    def _observe(self, _: CallbackOptions) -> list[Observation]:
        with _lock:
            known = list(self._counts.items())
        return [Observation(value, dict(zip(self.labels, key, strict=True))) for key, value in known]

    @property
    def prometheus_name(self) -> str:
        """Its name as Prometheus shows it."""
        return f"{self.name.replace('.', '_')}_total"


@dataclass(frozen=True, eq=False)
class GaugeMetric(Metric):
    """A number that goes up and down, and is as it is when somebody looks."""

    kind = "gauge"

    _readers: list[Reader] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Let the API read it."""
        unit = "" if self.unit == "1" else self.unit  # Prometheus' exporter takes a gauge of 1 for a ratio
        metrics.get_meter("perdure").create_observable_gauge(
            self.name, callbacks=[self._observe], unit=unit, description=self.meaning
        )

    def observe_with(self, read: Reader) -> Callable[[], None]:
        """Have the metric read from now on.

        Args:
            read: Returns each value with its labels. Called from the thread that collects, so it must not block.

        Returns:
            A function that ends it.
        """
        with _lock:
            self._readers.append(read)

        def stop() -> None:
            with _lock:
                self._readers.remove(read)

        return stop

    def _observe(self, _: CallbackOptions) -> list[Observation]:
        with _lock:
            asked = list(self._readers)
        return [Observation(value, dict(labels)) for read in asked for value, labels in read()]


@dataclass(frozen=True, eq=False)
class HistogramMetric(Metric):
    """How many measurements fell below each bound.

    Args:
        bounds: The bounds, rising, in the metric's unit.
    """

    kind = "histogram"

    bounds: tuple[float, ...] = ()
    _distributions: dict[LabelValues, _Distribution] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Let Prometheus be shown it."""
        _histograms.append(self)

    def record(self, value: float, /, **labels: str) -> None:
        """Record a measurement.

        Args:
            value: In the metric's unit.
            labels: A value for each of the metric's labels.

        Raises:
            ValueError: The labels are not the catalogue's.
        """
        self.record_at(self.values_of(labels), value)

    def record_at(self, values: LabelValues, value: float) -> None:
        """Record a measurement, without a look at the labels' names: for what is measured at each event.

        Args:
            values: The values of the labels, in the catalogue's order.
            value: In the metric's unit.
        """
        distributions = self._distributions
        with _lock:
            distribution = distributions.get(values)
            if distribution is None:
                if len(distributions) >= MOST_LABEL_SETS:
                    values = (OTHER,) * len(values)
                distribution = distributions.setdefault(values, _Distribution([0] * (len(self.bounds) + 1)))
            distribution.counts[bisect_left(self.bounds, value)] += 1
            distribution.total += value
        if _elsewhere.is_set():
            _histogram(self).record(value, dict(zip(self.labels, values, strict=True)))

    def family(self) -> HistogramMetricFamily | None:
        """Return what Prometheus is shown; None while nothing has been measured."""
        with _lock:
            known = [(key, list(each.counts), each.total) for key, each in self._distributions.items()]
        family = HistogramMetricFamily(self.prometheus_name, self.meaning, labels=self.labels)
        bounds = [*map(floatToGoString, self.bounds), "+Inf"]
        for key, counts, total in known:
            family.add_metric(key, list(zip(bounds, accumulate(counts), strict=True)), total)
        return family if known else None


@dataclass
class _Distribution:
    """The measurements of a histogram with one set of labels.

    Args:
        counts: How many fell into each bucket; the last one is for those above all bounds.
        total: Their sum.
    """

    counts: list[int]
    total: float = 0.0


_lock = Lock()
_elsewhere = Event()  # set where the process has a provider of its own
_histograms: list[HistogramMetric] = []


@cache
def _histogram(metric: HistogramMetric) -> Histogram:
    return metrics.get_meter("perdure").create_histogram(
        metric.name,
        unit=metric.unit,
        description=metric.meaning,
        explicit_bucket_boundaries_advisory=list(metric.bounds),
    )


class _Histograms(Collector):
    """Shows histograms to Prometheus."""

    def collect(self) -> Iterator[HistogramMetricFamily]:
        for metric in _histograms:
            family = metric.family()
            if family is not None:
                yield family


@cache
def export_to_prometheus() -> None:
    """Collect this process's metrics for `prometheus_text`; once, unless the user has set a provider before."""
    ours = MeterProvider(metric_readers=[PrometheusMetricReader(scope_info_enabled=False)])
    metrics.set_meter_provider(ours)
    if metrics.get_meter_provider() is ours:
        REGISTRY.register(_Histograms())
    else:
        _elsewhere.set()


def prometheus_text() -> tuple[bytes, str]:
    """Return this process's metrics as Prometheus reads them, and their content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
