"""Panels and dashboards, from which `build.py` generates Grafana's JSON.

All processes of a service export the same gauges, hence `max by`. `or vector(0)` shows 0 instead of "no data".
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Panel:
    """Panel of a dashboard.

    Args:
        title: The title.
        queries: The PromQL queries by legend; ``{{label}}`` in a legend is replaced by the label's value.
        description: The description.
        unit: Grafana's name of the unit.
        single: Whether the panel shows the last value instead of a graph.
        red_above: The threshold from which a single value is red; None for no threshold.
    """

    title: str
    queries: dict[str, str]
    description: str
    unit: str = "short"
    single: bool = False
    red_above: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """Dashboard.

    Args:
        uid: The ID and file name.
        title: The title.
        panels: The panels, in order.
        by_service: Whether the dashboard has the variable ``$service``.
    """

    uid: str
    title: str
    panels: tuple[Panel, ...]
    by_service: bool = False
    tags: tuple[str, ...] = field(default=("perdure",))


def number(title: str, query: str, description: str, *, unit: str = "short", red_above: float | None = None) -> Panel:
    """Return a panel with a single value."""
    return Panel(title, {"": query}, description, unit, single=True, red_above=red_above)


def graph(title: str, legend: str, query: str, description: str, unit: str = "short") -> Panel:
    """Return a panel with a graph."""
    return Panel(title, {legend: query}, description, unit)


def last_scan(reconciler: str) -> Panel:
    """Return the panel with the age of a reconciler's gauges."""
    return number(
        "Last reconciler scan",
        f'time() - max(perdure_reconciler_last_scan_seconds{{reconciler="{reconciler}"}})',
        "Time since the reconciler's last complete scan, which filled the gauges of this dashboard.",
        unit="s",
        red_above=60,
    )


DEAD_LETTERS = number(
    "Dead letters",
    "sum(max by (service) (perdure_dead_letters_open)) or vector(0)",
    "Steps whose compensation failed permanently and that need an operator.",
    red_above=1,
)
