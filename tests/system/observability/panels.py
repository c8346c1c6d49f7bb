"""What the dashboards show: the value of every panel's query, from the dashboards in deploy/grafana."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perdure.errors import ConfigurationError

FOLDER: Final = Path(__file__).parents[3] / "deploy" / "grafana" / "dashboards"
_NOTHING_IS_GOOD: Final = " or vector(0)"

Ask = Callable[[str], Awaitable[list[tuple[dict[str, str], float]]]]


@dataclass(frozen=True)
class PanelQuery:
    """One query of a panel.

    Args:
        dashboard: The dashboard's title.
        panel: The panel's title.
        expression: PromQL, with Grafana's variables in it.
        legend: Names a series, with ``{{label}}`` for a label's value.
    """

    dashboard: str
    panel: str
    expression: str
    legend: str

    def promql(self, window: str) -> str:
        """Return the query without Grafana's variables.

        Args:
            window: For ``$__rate_interval``, such as ``1m``.
        """
        return self.expression.replace("$__rate_interval", window).replace("$service", ".*")

    @property
    def strict(self) -> PanelQuery:
        """The same query without the 0 that stands for "nothing at all"."""
        return PanelQuery(self.dashboard, self.panel, self.expression.removesuffix(_NOTHING_IS_GOOD), self.legend)

    def named(self, labels: dict[str, str]) -> str:
        """Return the name of a series, as the legend has it.

        Args:
            labels: The series' labels.
        """
        return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), self.legend).strip()


def panel_queries(folder: Path = FOLDER) -> Iterator[PanelQuery]:
    """Return every query of every panel.

    Args:
        folder: Where the dashboards are.

    Raises:
        ConfigurationError: There are none.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ConfigurationError(f"there are no dashboards in {folder}: make reference")
    for file in files:
        dashboard = json.loads(file.read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield PanelQuery(dashboard["title"], panel["title"], target["expr"], target.get("legendFormat", ""))


async def panel_lines(ask: Ask, window: str) -> list[str]:
    """Return the values of all panels as text.

    Args:
        ask: Asks Prometheus.
        window: For ``$__rate_interval``.
    """
    shown: list[str] = []
    before = ("", "")
    for query in panel_queries():
        if query.dashboard != before[0]:
            shown.append(query.dashboard)
        if (query.dashboard, query.panel) != before:
            shown.append(f"  {query.panel}")
        before = (query.dashboard, query.panel)
        values = await ask(query.promql(window))
        shown += [f"    {_value(value)}  {query.named(labels)}".rstrip() for labels, value in values]
        if not values:
            shown.append("    no data")
    return shown


def _value(value: float) -> str:
    return f"{value:>12,.3f}".rstrip("0").rstrip(".").rjust(12)
