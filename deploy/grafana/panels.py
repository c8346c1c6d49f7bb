"""What a dashboard is made of. Each dashboard has a module; `build.py` makes Grafana's JSON of them.

Gauges of the reconcilers are the same from each process of a service, hence `max by`.
`or vector(0)` stands where nothing
at all is good news, which Prometheus would show as "no data".
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Panel:
    """One panel.

    Args:
        title: What it is.
        queries: PromQL by legend; ``{{label}}`` in a legend is the label's value.
        meaning: What to make of it; shown by the panel's (i).
        unit: Grafana's name of the unit.
        single: One number, the last one, instead of a graph.
        red_above: From where on a single number is red; None: it's never red.
    """

    title: str
    queries: dict[str, str]
    meaning: str
    unit: str = "short"
    single: bool = False
    red_above: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """One dashboard.

    Args:
        uid: Its id, and the name of its file.
        title: Its title.
        panels: What it shows, in order.
        by_service: It has a choice of services, ``$service``.
    """

    uid: str
    title: str
    panels: tuple[Panel, ...]
    by_service: bool = False
    tags: tuple[str, ...] = field(default=("perdure",))


def number(title: str, query: str, meaning: str, *, unit: str = "short", red_above: float | None = None) -> Panel:
    """Return a panel that shows one number, see `Panel`."""
    return Panel(title, {"": query}, meaning, unit, single=True, red_above=red_above)


def graph(title: str, legend: str, query: str, meaning: str, unit: str = "short") -> Panel:
    """Return a panel that shows a number over time, see `Panel`."""
    return Panel(title, {legend: query}, meaning, unit)


def reconciler_looked(reconciler: str) -> Panel:
    """Return the panel that says how fresh the gauges of a reconciler are.

    Args:
        reconciler: What it looks after.
    """
    return number(
        "SagaReconciler looked",
        f'time() - max(perdure_reconciler_last_scan_seconds{{reconciler="{reconciler}"}})',
        "How long ago the reconciler last saw the engine's tables. The gauges here are what it saw.",
        unit="s",
        red_above=60,
    )


DEAD_LETTERS = number(
    "Dead letters",
    "sum(max by (service) (perdure_dead_letters_open)) or vector(0)",
    "Steps that could not be undone and wait for an operator.",
    red_above=1,
)
