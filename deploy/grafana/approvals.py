"""Approvals: what waits for people."""

from __future__ import annotations

from panels import Dashboard, graph, number, reconciler_looked

APPROVALS = Dashboard(
    "perdure-approvals",
    "Approvals",
    (
        number("Waiting", "max(perdure_approvals_open)", "Approvals that wait for somebody."),
        number("Oldest", "max(perdure_approvals_oldest_seconds)", "How long the oldest has waited.", unit="s"),
        number(
            "Past their time",
            "max(perdure_approvals_overdue)",
            "Open although their time is over: what ends them does not run.",
            red_above=1,
        ),
        reconciler_looked("approvals"),
        graph("Open approvals", "waiting", "max(perdure_approvals_open)", "How many wait for somebody, over time."),
        graph(
            "Decided",
            "{{outcome}}",
            "sum by (outcome) (increase(perdure_approvals_decided_total[$__rate_interval]))",
            "How approvals ended. timed_out: nobody decided in time.",
        ),
        graph(
            "Acts on approvals",
            "{{handler}} {{outcome}}",
            'sum by (handler, outcome) (rate(perdure_invocations_total{service="Approvals"}[$__rate_interval]))',
            "What is asked of approvals; a failed approve or reject was refused.",
            "ops",
        ),
    ),
)
