from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from perdure.observability.instruments import (
    CounterMetric,
    GaugeMetric,
    HistogramMetric,
    export_to_prometheus,
    prometheus_text,
)
from perdure.observability.metrics import ATTEMPTS, CATALOGUE


def exported(name: str) -> dict[str, float]:
    """Return the samples of a metric by their labels, without those of OpenTelemetry."""
    export_to_prometheus()
    samples = {}
    for line in prometheus_text()[0].decode().splitlines():
        if line.startswith(f"{name}{{"):
            labels, value = line.removeprefix(f"{name}{{").rsplit("} ", 1)
            own = [label for label in labels.split(",") if not label.startswith("otel_")]
            samples[",".join(sorted(own))] = float(value)
    return samples


def test_counter_sums_by_labels():
    metric = CounterMetric("perdure.test.things", "For this test.", ("kind",))
    metric.count(kind="a")
    metric.count(2, kind="a")
    metric.count(kind="b")
    assert exported(metric.prometheus_name) == {'kind="a"': 3.0, 'kind="b"': 1.0}


@pytest.mark.parametrize("label", ["caf\udce9", "a\nb{} 1", '"', "\\", "x" * 100_000, "\0"])
def test_export_odd_labels(label: str):
    metric = CounterMetric(f"perdure.test.odd.x{len(label)}y{ord(label[0])}", "For this test.", ("kind",))
    metric.count(kind=label)
    metric.count(kind=label)
    (value,) = exported(metric.prometheus_name).values()
    assert value == 2


def test_counts_before_export_are_kept():
    program = (
        "from perdure.observability.instruments import export_to_prometheus, prometheus_text\n"
        "from perdure.observability.metrics import ATTEMPTS, ATTEMPT_DURATION\n"
        "ATTEMPTS.count(service='s', handler='h')\n"
        "ATTEMPT_DURATION.record(0.1, service='s', handler='h', outcome='succeeded')\n"
        "export_to_prometheus()\n"
        "ATTEMPTS.count(service='s', handler='h')\n"
        "lines = prometheus_text()[0].decode().splitlines()\n"
        "print([line.split()[-1] for line in lines if 'attempts_total{' in line or 'seconds_count{' in line])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.strip()[1:-1].split(", ")) == ["'1.0'", "'2.0'"]


def test_histogram_uses_custom_meter_provider():
    program = (
        "from opentelemetry import metrics\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "from opentelemetry.sdk.metrics.export import InMemoryMetricReader\n"
        "reader = InMemoryMetricReader()\n"
        "metrics.set_meter_provider(MeterProvider([reader]))\n"
        "from perdure.observability.instruments import export_to_prometheus\n"
        "from perdure.observability.metrics import ATTEMPT_DURATION\n"
        "export_to_prometheus()\n"
        "ATTEMPT_DURATION.record(0.1, service='s', handler='h', outcome='succeeded')\n"
        "found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics\n"
        "print([(metric.name, point.count) for metric in found for point in metric.data.data_points])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[('perdure.invocation.attempt.duration', 1)]"


@pytest.mark.parametrize("labels", [{}, {"service": "s"}, {"service": "s", "handler": "h", "key": "k"}, {"key": "k"}])
def test_reject_unknown_labels(labels):
    with pytest.raises(ValueError, match="has the labels service, handler"):
        ATTEMPTS.count(**labels)


def test_gauge_is_read_until_reader_is_removed():
    metric = GaugeMetric("perdure.test.open", "For this test.", ("service",), unit="s")
    now = {"s": 1.0}
    stop = metric.observe_with(lambda: [(value, {"service": name}) for name, value in now.items()])
    assert exported("perdure_test_open_seconds") == {'service="s"': 1.0}
    now["s"] = 7.0
    assert exported("perdure_test_open_seconds") == {'service="s"': 7.0}
    stop()
    assert exported("perdure_test_open_seconds") == {}


def test_histogram_counts_values_per_bucket():
    metric = HistogramMetric("perdure.test.time", "For this test.", ("service",), unit="s", bounds=(0.1, 1.0))
    for value in (0.05, 0.5, 0.5, 5.0):
        metric.record(value, service="s")
    assert exported("perdure_test_time_seconds_bucket") == {
        'le="0.1",service="s"': 1.0,
        'le="1.0",service="s"': 3.0,
        'le="+Inf",service="s"': 4.0,
    }


def test_concurrent_first_counts():
    metrics = [
        (
            CounterMetric(f"perdure.test.first.{number}", "For this test."),
            HistogramMetric(f"perdure.test.first.time.{number}", "For this test.", bounds=(1.0,)),
        )
        for number in range(50)
    ]
    together = threading.Barrier(8)

    def count() -> None:
        for counter, histogram in metrics:
            together.wait()
            counter.count()
            histogram.record(0.5)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count) for _ in range(together.parties)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    finally:
        sys.setswitchinterval(interval)
    export_to_prometheus()
    lines = prometheus_text()[0].decode().splitlines()
    for counter, histogram in metrics:
        name = histogram.prometheus_name
        assert f"{counter.prometheus_name} 8.0" in lines
        assert f"{name}_count 8.0" in lines
        assert lines.count(f"# TYPE {name} histogram") == 1, "Prometheus requires each metric once"


def test_metrics_have_unique_names_and_descriptions():
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)
    for metric in CATALOGUE:
        assert metric.name.startswith("perdure.")
        assert metric.description.endswith(".")
