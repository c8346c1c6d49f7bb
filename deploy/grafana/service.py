"""Service: what a service does, how fast and how well."""

from __future__ import annotations

from panels import Dashboard, Panel, graph

_BUCKETS = (
    "sum by (service, handler, le) "
    '(rate(perdure_invocation_attempt_duration_seconds_bucket{service=~"$service"}[$__rate_interval]))'
)
SERVICE = Dashboard(
    "perdure-service",
    "Service",
    (
        graph(
            "Invocations",
            "{{service}}/{{handler}}",
            'sum by (service, handler) (rate(perdure_invocations_total{service=~"$service"}[$__rate_interval]))',
            "Invocations that came to their end.",
            "ops",
        ),
        graph(
            "Share that failed",
            "{{service}}/{{handler}}",
            'sum by (service, handler) (rate(perdure_invocations_total{service=~"$service",outcome="failed"}'
            "[$__rate_interval])) / sum by (service, handler) "
            '(rate(perdure_invocations_total{service=~"$service"}[$__rate_interval]))',
            "With a terminal error.",
            "percentunit",
        ),
        Panel(
            "How long attempts take",
            {
                "half {{service}}/{{handler}}": f"histogram_quantile(0.5, {_BUCKETS})",
                "95 % {{service}}/{{handler}}": f"histogram_quantile(0.95, {_BUCKETS})",
            },
            "Of those that ended, however; a wait that suspends a handler ends its attempt.",
            "s",
        ),
        graph(
            "Attempts by how they ended",
            "{{outcome}}",
            "sum by (outcome) (rate(perdure_invocation_attempt_duration_seconds_count"
            '{service=~"$service"}[$__rate_interval]))',
            "retried: it failed and the engine tries again; interrupted: suspended, or its connection was lost.",
            "ops",
        ),
        graph(
            "Attempts for each invocation",
            "{{service}}",
            'sum by (service) (rate(perdure_invocation_attempts_total{service=~"$service"}[$__rate_interval])) '
            '/ sum by (service) (rate(perdure_invocations_total{service=~"$service"}[$__rate_interval]))',
            "1 when nothing suspends and nothing fails.",
        ),
        graph(
            "Runs",
            "{{service}} {{outcome}}",
            'sum by (service, outcome) (rate(perdure_runs_total{service=~"$service"}[$__rate_interval]))',
            "Attempts of side effects.",
            "ops",
        ),
        graph(
            "Processor",
            "{{process}}{{instance}}",
            'rate(process_cpu_seconds_total{job="perdure"}[$__rate_interval])',
            "Seconds of processor time in a second, by process.",
            "percentunit",
        ),
        graph(
            "Memory",
            "{{process}}{{instance}}",
            'process_resident_memory_bytes{job="perdure"}',
            "Resident memory, by process.",
            "bytes",
        ),
    ),
    by_service=True,
)
