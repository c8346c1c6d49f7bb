"""Service dashboard."""

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
            "Ended invocations.",
            "ops",
        ),
        graph(
            "Failure rate",
            "{{service}}/{{handler}}",
            'sum by (service, handler) (rate(perdure_invocations_total{service=~"$service",outcome="failed"}'
            "[$__rate_interval])) / sum by (service, handler) "
            '(rate(perdure_invocations_total{service=~"$service"}[$__rate_interval]))',
            "Share of invocations with a terminal error.",
            "percentunit",
        ),
        Panel(
            "Attempt duration",
            {
                "p50 {{service}}/{{handler}}": f"histogram_quantile(0.5, {_BUCKETS})",
                "p95 {{service}}/{{handler}}": f"histogram_quantile(0.95, {_BUCKETS})",
            },
            "Ended attempts of any outcome; a suspension ends an attempt.",
            "s",
        ),
        graph(
            "Attempts by outcome",
            "{{outcome}}",
            "sum by (outcome) (rate(perdure_invocation_attempt_duration_seconds_count"
            '{service=~"$service"}[$__rate_interval]))',
            "retried: failed, to be retried by the engine; interrupted: suspended or disconnected.",
            "ops",
        ),
        graph(
            "Attempts per invocation",
            "{{service}}",
            'sum by (service) (rate(perdure_invocation_attempts_total{service=~"$service"}[$__rate_interval])) '
            '/ sum by (service) (rate(perdure_invocations_total{service=~"$service"}[$__rate_interval]))',
            "1 without suspensions and failures.",
        ),
        graph(
            "Runs",
            "{{service}} {{outcome}}",
            'sum by (service, outcome) (rate(perdure_runs_total{service=~"$service"}[$__rate_interval]))',
            "Attempts of side effects by outcome.",
            "ops",
        ),
        graph(
            "CPU",
            "{{process}}{{instance}}",
            'rate(process_cpu_seconds_total{job="perdure"}[$__rate_interval])',
            "CPU seconds per second, by process.",
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
