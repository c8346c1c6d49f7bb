"""Platform overview dashboard."""

from __future__ import annotations

from panels import DEAD_LETTERS, Dashboard, graph, number

OVERVIEW = Dashboard(
    "perdure-overview",
    "Platform overview",
    (
        number("Processes up", 'sum(up{job="perdure"})', "Processes that Prometheus can scrape."),
        number("Engine nodes up", 'sum(up{job="restate"})', "Engine nodes that Prometheus can scrape."),
        DEAD_LETTERS,
        number(
            "Sagas open",
            "sum(max by (service, phase) (perdure_saga_open)) or vector(0)",
            "Sagas that have not ended.",
        ),
        number("Approvals open", "max(perdure_approvals_open)", "Open approvals."),
        number(
            "Invocations stuck",
            "sum(max by (service, status) (perdure_invocations_stuck)) or vector(0)",
            "Invocations that are paused or fail repeatedly.",
            red_above=1,
        ),
        graph(
            "Requests at the ingress",
            "{{status}}",
            "sum by (status) (rate(restate_ingress_requests_total[$__rate_interval]))",
            "Requests by status. invocation_error: the handler ended with a terminal error.",
            "reqps",
        ),
        graph(
            "Invocations",
            "{{outcome}}",
            "sum by (outcome) (rate(perdure_invocations_total[$__rate_interval]))",
            "Ended invocations of all services by outcome.",
            "ops",
        ),
        graph(
            "Failure rate of invocations",
            "{{service}}",
            'sum by (service) (rate(perdure_invocations_total{outcome="failed"}[$__rate_interval])) '
            "/ sum by (service) (rate(perdure_invocations_total[$__rate_interval]))",
            "Share of invocations with a terminal error, including business errors such as a declined card.",
            "percentunit",
        ),
        graph(
            "Retried runs",
            "{{service}}",
            'sum by (service) (rate(perdure_runs_total{outcome="retried"}[$__rate_interval])) or vector(0)',
            "Side effects that fail and are retried: check the database or the external service.",
            "ops",
        ),
        graph(
            "Security refusals",
            "{{rule}} ({{mode}})",
            "sum by (rule, mode) (rate(perdure_security_refusals_total[$__rate_interval])) or vector(0)",
            "Requests to services that violate a security rule, for example from callers other than the engine.",
            "ops",
        ),
        graph(
            "Guardrail violations",
            "{{check}} ({{policy}})",
            "sum by (check, policy) (increase(perdure_guardrail_violations_total[$__rate_interval])) or vector(0)",
            "Handler code that violates a guardrail; the log names the handler.",
        ),
    ),
)
