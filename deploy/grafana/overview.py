"""Platform overview: is all well?"""

from __future__ import annotations

from panels import DEAD_LETTERS, Dashboard, graph, number

OVERVIEW = Dashboard(
    "perdure-overview",
    "Platform overview",
    (
        number("Processes up", 'sum(up{job="perdure"})', "Services that answer Prometheus, of those it knows."),
        number("Engine nodes up", 'sum(up{job="restate"})', "Nodes of the engine that answer Prometheus."),
        DEAD_LETTERS,
        number(
            "Sagas open",
            "sum(max by (service, phase) (perdure_saga_open)) or vector(0)",
            "Sagas that have not come to their end.",
        ),
        number("Approvals waiting", "max(perdure_approvals_open)", "Approvals that wait for somebody."),
        number(
            "Invocations stuck",
            "sum(max by (service, status) (perdure_invocations_stuck)) or vector(0)",
            "Invocations that are paused, or fail again and again.",
            red_above=1,
        ),
        graph(
            "Requests at the ingress",
            "{{status}}",
            "sum by (status) (rate(restate_ingress_requests_total[$__rate_interval]))",
            "Requests by how they ended. invocation_error: the handler ended with a terminal error.",
            "reqps",
        ),
        graph(
            "Invocations",
            "{{outcome}}",
            "sum by (outcome) (rate(perdure_invocations_total[$__rate_interval]))",
            "Invocations that came to their end, in all services.",
            "ops",
        ),
        graph(
            "Share of invocations that failed",
            "{{service}}",
            'sum by (service) (rate(perdure_invocations_total{outcome="failed"}[$__rate_interval])) '
            "/ sum by (service) (rate(perdure_invocations_total[$__rate_interval]))",
            "With a terminal error; among them what the business refuses, as a declined card.",
            "percentunit",
        ),
        graph(
            "Runs tried again",
            "{{service}}",
            'sum by (service) (rate(perdure_runs_total{outcome="retried"}[$__rate_interval])) or vector(0)',
            "Side effects that failed and are tried again: a database or a partner has trouble.",
            "ops",
        ),
        graph(
            "Requests refused",
            "{{rule}} ({{mode}})",
            "sum by (rule, mode) (rate(perdure_security_refusals_total[$__rate_interval])) or vector(0)",
            "Requests to services that broke a security rule; somebody else than the engine calls them.",
            "ops",
        ),
        graph(
            "Guardrails violated",
            "{{check}} ({{policy}})",
            "sum by (check, policy) (increase(perdure_guardrail_violations_total[$__rate_interval])) or vector(0)",
            "Code that does what it had better not, see the log for where.",
        ),
    ),
)
