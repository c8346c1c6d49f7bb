"""Generates dashboards from this folder's modules, and alerts for Kubernetes: python deploy/grafana/build.py [--check].

With --check, it writes no files, lists the outdated ones, and exits 1 if there are any.
"""

from __future__ import annotations

import sys
from pathlib import Path
from string import ascii_uppercase
from textwrap import indent
from typing import Any

from approvals import APPROVALS
from engine import ENGINE
from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, SortOrder, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from overview import OVERVIEW
from panels import Dashboard, Panel
from sagas import SAGAS
from service import SERVICE

DASHBOARDS = (OVERVIEW, SAGAS, APPROVALS, SERVICE, ENGINE)
DEPLOY = Path(__file__).parents[1]
FOLDER = DEPLOY / "grafana" / "dashboards"
_ALERTS = """\
# Generated from deploy/prometheus/rules/perdure.yml by `make reference`, for the Prometheus operator.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: { name: perdure, namespace: perdure }
spec:
"""
_SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")


def render(dashboard: Dashboard) -> str:
    """Return the JSON of a dashboard."""
    builder = (
        dashboards.Dashboard(dashboard.title)
        .uid(dashboard.uid)
        .tags(list(dashboard.tags))
        .readonly()
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
    )
    if dashboard.by_service:
        builder = builder.with_variable(
            dashboards.QueryVariable("service")
            .label("Service")
            .query("label_values(perdure_invocations_total, service)")
            .datasource(_SOURCE)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
        )
    for number, panel in enumerate(dashboard.panels, 1):
        builder = builder.with_panel(_panel(panel).id(number))
    return JSONEncoder(sort_keys=True, indent=2).encode(builder.build()) + "\n"


def alerts() -> str:
    """Return the Prometheus rules as a Kubernetes manifest."""
    rules = (DEPLOY / "prometheus" / "rules" / "perdure.yml").read_text()
    return _ALERTS + indent(rules[rules.index("groups:") :], "  ")


def _panel(panel: Panel) -> Any:
    made: Any = stat.Panel() if panel.single else _graph()
    made = made.title(panel.title).description(panel.description).unit(panel.unit).datasource(_SOURCE)
    made = made.height(4).span(6) if panel.single else made.height(8).span(12)
    if panel.single:
        steps = [Threshold(value=None, color="green")]
        if panel.red_above is not None:
            steps.append(Threshold(value=panel.red_above, color="red"))
        made = made.thresholds(dashboards.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        made = made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    for letter, (legend, expression) in zip(ascii_uppercase, panel.queries.items(), strict=False):
        query = prometheus.Dataquery().expr(expression).datasource(_SOURCE).ref_id(letter)
        made = made.with_target(query.legend_format(legend) if legend else query)
    return made


def _graph() -> Any:
    legend = common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
    legend = legend.placement(LegendPlacement.BOTTOM).calcs([])
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    return timeseries.Panel().fill_opacity(10).min(0).legend(legend).tooltip(tooltip)


def main(check: bool) -> int:
    """Write the files, or only compare them, and return the exit code."""
    manifest = DEPLOY / "kubernetes" / "base" / "alerts.yaml"
    generated = {FOLDER / f"{dashboard.uid}.json": render(dashboard) for dashboard in DASHBOARDS}
    generated[manifest] = alerts()
    existing = {path for path in (*FOLDER.glob("*.json"), manifest) if path.exists()}
    outdated = [path for path, text in generated.items() if path not in existing or path.read_text() != text]
    outdated += sorted(existing - set(generated))
    if check:
        for path in outdated:
            sys.stdout.write(f"{path.name} is outdated; run make reference\n")
        return 1 if outdated else 0
    for path in existing - set(generated):
        path.unlink()
    for path, text in generated.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
