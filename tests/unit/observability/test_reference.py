"""Generated metrics reference, and the names of metrics in Prometheus."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from perdure.observability.reference import metrics_page

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"

# A separate process, without the counts of other tests.
EXPORTS_ALL = """
from perdure.observability.instruments import CounterMetric, GaugeMetric, export_to_prometheus, prometheus_text
from perdure.observability.metrics import CATALOGUE
export_to_prometheus()
for metric in CATALOGUE:
    labels = dict.fromkeys(metric.labels, "x")
    if isinstance(metric, CounterMetric):
        metric.count(**labels)
    elif isinstance(metric, GaugeMetric):
        metric.observe_with(lambda labels=labels: [(1.0, labels)])
    else:
        metric.record(1.0, **labels)
names = {line.split("{")[0].split(" ")[0] for line in prometheus_text()[0].decode().splitlines()}
missing = [m.prometheus_name for m in CATALOGUE if not {m.prometheus_name, m.prometheus_name + "_bucket"} & names]
print(missing)
"""


def test_page_matches_catalogue():
    assert PAGE.read_text() == metrics_page(), "run make reference"


def test_prometheus_exports_every_metric():
    done = subprocess.run([sys.executable, "-c", EXPORTS_ALL], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_label_sets_are_bounded():
    program = (
        "from perdure.observability import instruments as m\n"
        "metric = m.CounterMetric('perdure.test.bounded', 'For this test.', ('name',))\n"
        "for number in range(m.MAX_LABEL_SETS + 500): metric.count(name=f'name {number}')\n"
        "m.export_to_prometheus()\n"
        "text = m.prometheus_text()[0].decode()\n"
        "lines = [line for line in text.splitlines() if line.startswith('perdure_test_bounded_total')]\n"
        "print(len(lines), [line.split()[-1] for line in lines if 'other' in line])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1001 ['500.0']"
