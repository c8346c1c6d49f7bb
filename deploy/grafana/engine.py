"""Engine: what its own metrics say."""

from __future__ import annotations

from panels import Dashboard, graph, number

ENGINE = Dashboard(
    "perdure-engine",
    "Engine",
    (
        number(
            "Partition leaders",
            "sum(restate_num_active_partition_leaders)",
            "Partitions that are led; all of them should be.",
        ),
        number(
            "Without a leader",
            "max(restate_num_partitions) - sum(restate_num_active_partition_leaders)",
            "Partitions that nobody leads: what is in them stands still.",
            red_above=1,
        ),
        number(
            "Behind",
            'max(restate_partition_record_committed_to_read_latency_seconds{quantile="1"})',
            "How long a record of the log waited until a partition read it, at most in the last minute.",
            unit="s",
            red_above=10,
        ),
        number(
            "Attempts at work",
            "sum(restate_invoker_concurrency_slots_acquired - restate_invoker_concurrency_slots_released)",
            "Attempts that are open now.",
        ),
        number(
            "Memory",
            "sum(restate_jemalloc_resident_bytes)",
            "Resident memory of the engine's allocator, all nodes.",
            unit="bytes",
        ),
        graph(
            "Requests at the ingress",
            "{{rpc_service}} {{status}}",
            'sum by (rpc_service, status) (rate(restate_ingress_requests_total{rpc_service!=""}[$__rate_interval]))',
            "By the service that is called.",
            "reqps",
        ),
        graph(
            "How long they take",
            "{{rpc_service}}",
            'max by (rpc_service) (restate_ingress_request_duration_seconds{quantile="0.99"})',
            "99 % of the requests took no longer, of those the engine remembers.",
            "s",
        ),
        graph(
            "Attempts",
            "{{status}}",
            "sum by (status) (rate(restate_invoker_invocation_tasks_total[$__rate_interval]))",
            "Attempts that the engine started, and how they ended.",
            "ops",
        ),
        graph(
            "Applying commands",
            "{{node_name}}",
            "sum by (node_name) (rate(restate_partition_apply_command_duration_seconds_count[$__rate_interval]))",
            "Commands that partitions applied; what the engine does, it does by these.",
            "ops",
        ),
        graph(
            "From the log to a partition",
            "{{quantile}}",
            "max by (quantile) (restate_partition_record_committed_to_read_latency_seconds)",
            "How long a record took from its commit until a partition read it.",
            "s",
        ),
        graph(
            "Memory pools",
            "{{name}}",
            "max by (name) (restate_memory_pool_usage_bytes / restate_memory_pool_capacity_bytes)",
            "How full each of the engine's pools is.",
            "percentunit",
        ),
    ),
)
