"""Engine dashboard, from the engine's own metrics."""

from __future__ import annotations

from panels import Dashboard, graph, number

ENGINE = Dashboard(
    "perdure-engine",
    "Engine",
    (
        number(
            "Partition leaders",
            "sum(restate_num_active_partition_leaders)",
            "Partitions with a leader; all of them should have one.",
        ),
        number(
            "Leaderless partitions",
            "max(restate_num_partitions) - sum(restate_num_active_partition_leaders)",
            "Partitions without a leader, whose invocations do not run.",
            red_above=1,
        ),
        number(
            "Log lag",
            'max(restate_partition_record_committed_to_read_latency_seconds{quantile="1"})',
            "Maximum time between commit and processing of a log record in the last minute.",
            unit="s",
            red_above=10,
        ),
        number(
            "Running attempts",
            "sum(restate_invoker_concurrency_slots_acquired - restate_invoker_concurrency_slots_released)",
            "Attempts that run now.",
        ),
        number(
            "Memory",
            "sum(restate_jemalloc_resident_bytes)",
            "Resident memory of the engine's allocator on all nodes.",
            unit="bytes",
        ),
        graph(
            "Requests at the ingress",
            "{{rpc_service}} {{status}}",
            'sum by (rpc_service, status) (rate(restate_ingress_requests_total{rpc_service!=""}[$__rate_interval]))',
            "Requests by service and status.",
            "reqps",
        ),
        graph(
            "Ingress latency",
            "{{rpc_service}}",
            'max by (rpc_service) (restate_ingress_request_duration_seconds{quantile="0.99"})',
            "99th percentile of recent requests.",
            "s",
        ),
        graph(
            "Attempts",
            "{{status}}",
            "sum by (status) (rate(restate_invoker_invocation_tasks_total[$__rate_interval]))",
            "Attempts started by the engine, and their outcomes.",
            "ops",
        ),
        graph(
            "Applied commands",
            "{{node_name}}",
            "sum by (node_name) (rate(restate_partition_apply_command_duration_seconds_count[$__rate_interval]))",
            "Commands applied by partitions; all work of the engine consists of commands.",
            "ops",
        ),
        graph(
            "Log latency",
            "{{quantile}}",
            "max by (quantile) (restate_partition_record_committed_to_read_latency_seconds)",
            "Time between commit and processing of a log record.",
            "s",
        ),
        graph(
            "Memory pools",
            "{{name}}",
            "max by (name) (restate_memory_pool_usage_bytes / restate_memory_pool_capacity_bytes)",
            "Used share of each memory pool.",
            "percentunit",
        ),
    ),
)
