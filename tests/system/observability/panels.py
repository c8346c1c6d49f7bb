"""Queries of the dashboard panels in deploy/grafana, and their values."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perdure.errors import ConfigurationError

FOLDER: Final = Path(__file__).parents[3] / "deploy" / "grafana" / "dashboards"
_DEFAULT_ZERO: Final = " or vector(0)"

Query = Callable[[str], Awaitable[list[tuple[dict[str, str], float]]]]


@dataclass(frozen=True)
class PanelQuery:
    """Query of a panel, with Grafana's variables, and the legend with placeholders ``{{label}}``."""

    dashboard: str
    panel: str
    expression: str
    legend: str

    def promql(self, window: str) -> str:
        """Return the query with a window such as ``1m`` instead of Grafana's variables."""
        return self.expression.replace("$__rate_interval", window).replace("$service", ".*")

    @property
    def strict(self) -> PanelQuery:
        """The query without the default value 0."""
        return PanelQuery(self.dashboard, self.panel, self.expression.removesuffix(_DEFAULT_ZERO), self.legend)

    def series_name(self, labels: dict[str, str]) -> str:
        """Return the legend of a series."""
        return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), self.legend).strip()


def panel_queries(folder: Path = FOLDER) -> Iterator[PanelQuery]:
    """Yield the queries of all panels."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ConfigurationError(f"no dashboards in {folder}; run make reference")
    for file in files:
        dashboard = json.loads(file.read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield PanelQuery(dashboard["title"], panel["title"], target["expr"], target.get("legendFormat", ""))


async def panel_lines(query_prometheus: Query, window: str) -> list[str]:
    """Return the values of all panels as text."""
    output: list[str] = []
    previous = ("", "")
    for query in panel_queries():
        if query.dashboard != previous[0]:
            output.append(query.dashboard)
        if (query.dashboard, query.panel) != previous:
            output.append(f"  {query.panel}")
        previous = (query.dashboard, query.panel)
        values = await query_prometheus(query.promql(window))
        output += [f"    {_value(value)}  {query.series_name(labels)}".rstrip() for labels, value in values]
        if not values:
            output.append("    no data")
    return output


def _value(value: float) -> str:
    return f"{value:>12,.3f}".rstrip("0").rstrip(".").rjust(12)
