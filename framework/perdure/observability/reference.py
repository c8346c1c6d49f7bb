"""Generator of docs/reference/metrics.md: ``python -m perdure.observability.reference``."""

from __future__ import annotations

import sys

from perdure.observability.instruments import MAX_LABEL_SETS, OTHER, HistogramMetric, Metric
from perdure.observability.metrics import CATALOGUE

_UNITS = {"1": "count", "s": "seconds"}


def metrics_page() -> str:
    """Return the page as Markdown."""
    rows = "\n".join(_row(metric) for metric in CATALOGUE)
    return f"""# Metrics

Generated from `perdure.observability.metrics` by `make reference`; a test compares the two.

Every process serves its metrics at `/metrics`. Replays are not counted. An event is counted twice only if the process
dies or loses its connection before the engine stores the journal entry. Labels contain names from code, never IDs. A
metric has at most {MAX_LABEL_SETS} label sets; further ones count as `{OTHER}`.

The gauges of threads show the process. The others show the last scan of a reconciler, every few seconds: the approvals
service serves those of approvals, the saga service the rest. They are missing while the engine is unavailable;
`perdure_reconciler_last_scan_seconds` is the time of the last scan. All processes of a service export the same values,
so aggregate them with `max`, not `sum`.

| metric | type | unit | labels | meaning |
|---|---|---|---|---|
{rows}
"""


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    bounds = ""
    if isinstance(metric, HistogramMetric):
        bounds = f" Buckets: {', '.join(f'{bound:g}' for bound in metric.bounds)}."
    unit = _UNITS[metric.unit]
    return f"| `{metric.prometheus_name}` | {metric.kind} | {unit} | {labels} | {metric.description}{bounds} |"


if __name__ == "__main__":
    sys.stdout.write(metrics_page())  # noqa: TID251 - contains no external text
