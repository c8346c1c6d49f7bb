"""Approvals dashboard."""

from __future__ import annotations

from panels import Dashboard, graph, last_scan, number

APPROVALS = Dashboard(
    "perdure-approvals",
    "Approvals",
    (
        number("Open", "max(perdure_approvals_open)", "Open approvals."),
        number("Oldest", "max(perdure_approvals_oldest_seconds)", "Age of the oldest open approval.", unit="s"),
        number(
            "Overdue",
            "max(perdure_approvals_overdue)",
            "Open approvals whose deadline has passed: their timers do not run.",
            red_above=1,
        ),
        last_scan("approvals"),
        graph("Open approvals", "open", "max(perdure_approvals_open)", "Open approvals over time."),
        graph(
            "Closed",
            "{{outcome}}",
            "sum by (outcome) (increase(perdure_approvals_decided_total[$__rate_interval]))",
            "Closed approvals by outcome. timed_out: the deadline passed without a decision.",
        ),
        graph(
            "Approval requests",
            "{{handler}} {{outcome}}",
            'sum by (handler, outcome) (rate(perdure_invocations_total{service="Approvals"}[$__rate_interval]))',
            "Requests to Approvals by outcome. A failed approve or reject was refused.",
            "ops",
        ),
    ),
)
