"""The page about metrics in docs/reference, made from the catalogue: ``python -m perdure.observability.reference``."""

from __future__ import annotations

import sys

from perdure.observability.instruments import MOST_LABEL_SETS, OTHER, HistogramMetric, Metric
from perdure.observability.metrics import CATALOGUE

_UNITS = {"1": "a number", "s": "seconds"}


def metrics_page() -> str:
    """Return the page, as Markdown."""
    rows = "\n".join(_row(metric) for metric in CATALOGUE)
    return f"""# Metrics

Made from `perdure.observability.metrics` by `make reference`; a test checks that the two agree.

Every process serves these at `/metrics`. What happens in a handler is counted when it happens, and not when it is
replayed; twice only when a process dies, or loses its connection, before the engine has learnt of it. A name that
comes from code is a label, an id never is; a counter that would keep more than {MOST_LABEL_SETS} sets of labels apart
counts the rest as `{OTHER}`.

The gauges are what a reconciler saw in the engine's tables when it last looked, every few seconds: those of approvals
are served by the approvals service, the others by the saga service. When the engine can't be asked, they are gone,
and `perdure_reconciler_looked_seconds` tells since when. Where a service runs more than once, each of its processes
says the same, so take their maximum, not their sum.

| metric | kind | unit | labels | what it tells |
|---|---|---|---|---|
{rows}
"""


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    bounds = ""
    if isinstance(metric, HistogramMetric):
        bounds = f" Counted up to {', '.join(f'{bound:g}' for bound in metric.bounds)}."
    unit = _UNITS[metric.unit]
    return f"| `{metric.prometheus_name}` | {metric.kind} | {unit} | {labels} | {metric.meaning}{bounds} |"


if __name__ == "__main__":
    sys.stdout.write(metrics_page())  # noqa: TID251 - a page of ours
