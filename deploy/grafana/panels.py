"""What the dashboards show: each panel, and the query behind it. `build.py` makes Grafana's JSON of it.

Gauges of the sentinels are the same from each process of a service, hence `max by`. `or vector(0)` stands where nothing
at all is good news, which Prometheus would show as "no data".
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Panel:
    """One panel.

    Args:
        title: What it is.
        queries: PromQL by legend; ``{{label}}`` in a legend is the label's value.
        meaning: What to make of it; shown by the panel's (i).
        unit: Grafana's name of the unit.
        single: One number, the last one, instead of a graph.
        red_above: From where on a single number is red; None: it's never red.
    """

    title: str
    queries: dict[str, str]
    meaning: str
    unit: str = "short"
    single: bool = False
    red_above: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """One dashboard.

    Args:
        uid: Its id, and the name of its file.
        title: Its title.
        panels: What it shows, in order.
        by_service: It has a choice of services, ``$service``.
    """

    uid: str
    title: str
    panels: tuple[Panel, ...]
    by_service: bool = False
    tags: tuple[str, ...] = field(default=("perdure",))


def _number(title: str, query: str, meaning: str, *, unit: str = "short", red_above: float | None = None) -> Panel:
    return Panel(title, {"": query}, meaning, unit, single=True, red_above=red_above)


def _graph(title: str, legend: str, query: str, meaning: str, unit: str = "short") -> Panel:
    return Panel(title, {legend: query}, meaning, unit)


_OVERVIEW = Dashboard(
    "perdure-overview",
    "Platform overview",
    (
        _number("Processes up", 'sum(up{job="perdure"})', "Services that answer Prometheus, of those it knows."),
        _number("Engine nodes up", 'sum(up{job="restate"})', "Nodes of the engine that answer Prometheus."),
        _number(
            "Dead letters",
            "sum(max by (service) (perdure_dead_letters_open)) or vector(0)",
            "Steps that could not be undone and wait for an operator.",
            red_above=1,
        ),
        _number(
            "Sagas open",
            "sum(max by (service, phase) (perdure_saga_open)) or vector(0)",
            "Sagas that have not come to their end.",
        ),
        _number("Approvals waiting", "max(perdure_approvals_open)", "Approvals that wait for somebody."),
        _number(
            "Invocations stuck",
            "sum(max by (service, status) (perdure_invocations_stuck)) or vector(0)",
            "Invocations that are paused, or fail again and again.",
            red_above=1,
        ),
        _graph(
            "Requests at the ingress",
            "{{status}}",
            "sum by (status) (rate(restate_ingress_requests_total[$__rate_interval]))",
            "Requests by how they ended. invocation_error: the handler ended with a terminal error.",
            "reqps",
        ),
        _graph(
            "Invocations",
            "{{outcome}}",
            "sum by (outcome) (rate(perdure_invocations_total[$__rate_interval]))",
            "Invocations that came to their end, in all services.",
            "ops",
        ),
        _graph(
            "Share of invocations that failed",
            "{{service}}",
            'sum by (service) (rate(perdure_invocations_total{outcome="failed"}[$__rate_interval])) '
            "/ sum by (service) (rate(perdure_invocations_total[$__rate_interval]))",
            "With a terminal error; among them what the business refuses, as a declined card.",
            "percentunit",
        ),
        _graph(
            "Runs tried again",
            "{{service}}",
            'sum by (service) (rate(perdure_runs_total{outcome="retried"}[$__rate_interval])) or vector(0)',
            "Side effects that failed and are tried again: a database or a partner has trouble.",
            "ops",
        ),
        _graph(
            "Requests refused",
            "{{rule}} ({{mode}})",
            "sum by (rule, mode) (rate(perdure_security_refusals_total[$__rate_interval])) or vector(0)",
            "Requests to services that broke a security rule; somebody else than the engine calls them.",
            "ops",
        ),
        _graph(
            "Guardrails violated",
            "{{check}} ({{policy}})",
            "sum by (check, policy) (rate(perdure_guardrail_violations_total[$__rate_interval])) or vector(0)",
            "Code that does what it had better not, see the log for where.",
            "ops",
        ),
    ),
)

_SAGAS = Dashboard(
    "perdure-sagas",
    "Sagas and dead letters",
    (
        _number(
            "Dead letters",
            "sum(max by (service) (perdure_dead_letters_open)) or vector(0)",
            "Steps that could not be undone and wait for an operator.",
            red_above=1,
        ),
        _number(
            "Oldest dead letter",
            "max(perdure_dead_letters_oldest_seconds) or vector(0)",
            "How long the oldest has waited.",
            unit="s",
        ),
        _number(
            "Compensating",
            'sum(max by (service) (perdure_saga_open{phase="compensating"})) or vector(0)',
            "Sagas that are being rolled back.",
        ),
        _number(
            "Sentinel looked",
            'time() - max(perdure_sentinel_looked_seconds{sentinel="sagas"})',
            "How long ago the sentinel last saw the engine's tables. The gauges here are what it saw.",
            unit="s",
            red_above=60,
        ),
        _graph(
            "Sagas open",
            "{{service}} {{phase}}",
            "max by (service, phase) (perdure_saga_open)",
            "By phase. lost: the orchestration is gone and nothing has been undone yet; the sentinel acts on it.",
        ),
        _graph(
            "Oldest open saga",
            "{{service}} {{phase}}",
            "max by (service, phase) (perdure_saga_oldest_seconds)",
            "How long ago the oldest of each phase was started.",
            "s",
        ),
        _graph(
            "Sagas started",
            "{{service}}",
            "sum by (service) (rate(perdure_saga_started_total[$__rate_interval]))",
            "Sagas that recorded their first step.",
            "ops",
        ),
        _graph(
            "Steps",
            "{{step}} {{outcome}}",
            "sum by (step, outcome) (rate(perdure_saga_steps_total[$__rate_interval]))",
            "Steps that came to their end.",
            "ops",
        ),
        _graph(
            "Compensations",
            "{{step}} {{state}}",
            "sum by (step, state) (rate(perdure_saga_compensations_total[$__rate_interval]))",
            "Attempts to undo a step. pending: it failed and is tried again; dead_letter: it failed for the last time.",
            "ops",
        ),
        _graph(
            "Rollbacks",
            "{{service}} {{outcome}}",
            "sum by (service, outcome) (rate(perdure_saga_rollbacks_total[$__rate_interval]))",
            "Rollbacks that ended.",
            "ops",
        ),
        _graph(
            "Operators' acts",
            "{{act}}",
            "sum by (act) (increase(perdure_saga_acts_total[$__rate_interval]))",
            "What operators did about dead letters.",
        ),
        _graph(
            "What the sentinel found",
            "{{service}} {{kind}}",
            "sum by (service, kind) (increase(perdure_sentinel_finds_total[$__rate_interval]))",
            "Sagas that nobody looked after any more, handed over or set going again.",
        ),
    ),
)

_APPROVALS = Dashboard(
    "perdure-approvals",
    "Approvals",
    (
        _number("Waiting", "max(perdure_approvals_open)", "Approvals that wait for somebody."),
        _number("Oldest", "max(perdure_approvals_oldest_seconds)", "How long the oldest has waited.", unit="s"),
        _number(
            "Past their time",
            "max(perdure_approvals_overdue)",
            "Open although their time is over: what ends them does not run.",
            red_above=1,
        ),
        _number(
            "Sentinel looked",
            'time() - max(perdure_sentinel_looked_seconds{sentinel="approvals"})',
            "How long ago the sentinel last saw the engine's tables. The gauges here are what it saw.",
            unit="s",
            red_above=60,
        ),
        _graph("Open approvals", "waiting", "max(perdure_approvals_open)", "How many wait for somebody, over time."),
        _graph(
            "Decided",
            "{{outcome}}",
            "sum by (outcome) (increase(perdure_approvals_decided_total[$__rate_interval]))",
            "How approvals ended. timed_out: nobody decided in time.",
        ),
        _graph(
            "Acts on approvals",
            "{{handler}} {{outcome}}",
            'sum by (handler, outcome) (rate(perdure_invocations_total{service="Approvals"}[$__rate_interval]))',
            "What is asked of approvals; a failed approve or reject was refused.",
            "ops",
        ),
    ),
)

_BUCKETS = (
    "sum by (service, handler, le) "
    '(rate(perdure_invocation_attempt_duration_seconds_bucket{service=~"$service"}[$__rate_interval]))'
)
_SERVICE = Dashboard(
    "perdure-service",
    "Service",
    (
        _graph(
            "Invocations",
            "{{service}}/{{handler}}",
            'sum by (service, handler) (rate(perdure_invocations_total{service=~"$service"}[$__rate_interval]))',
            "Invocations that came to their end.",
            "ops",
        ),
        _graph(
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
        _graph(
            "Attempts by how they ended",
            "{{outcome}}",
            "sum by (outcome) (rate(perdure_invocation_attempt_duration_seconds_count"
            '{service=~"$service"}[$__rate_interval]))',
            "retried: it failed and the engine tries again; interrupted: suspended, or its connection was lost.",
            "ops",
        ),
        _graph(
            "Attempts for each invocation",
            "{{service}}",
            'sum by (service) (rate(perdure_invocation_attempts_total{service=~"$service"}[$__rate_interval])) '
            '/ sum by (service) (rate(perdure_invocations_total{service=~"$service"}[$__rate_interval]))',
            "1 when nothing suspends and nothing fails.",
        ),
        _graph(
            "Runs",
            "{{service}} {{outcome}}",
            'sum by (service, outcome) (rate(perdure_runs_total{service=~"$service"}[$__rate_interval]))',
            "Attempts of side effects.",
            "ops",
        ),
        _graph(
            "Processor",
            "{{process}}{{instance}}",
            'rate(process_cpu_seconds_total{job="perdure"}[$__rate_interval])',
            "Seconds of processor time in a second, by process.",
            "percentunit",
        ),
        _graph(
            "Memory",
            "{{process}}{{instance}}",
            'process_resident_memory_bytes{job="perdure"}',
            "Resident memory, by process.",
            "bytes",
        ),
    ),
    by_service=True,
)

_ENGINE = Dashboard(
    "perdure-engine",
    "Engine",
    (
        _number(
            "Partition leaders",
            "sum(restate_num_active_partition_leaders)",
            "Partitions that are led; all of them should be.",
        ),
        _number(
            "Behind",
            'max(restate_partition_applied_lsn_lag{quantile="0.99"})',
            "Log records that a partition has not applied yet.",
            red_above=1000,
        ),
        _number(
            "Attempts at work",
            "sum(restate_invoker_concurrency_slots_acquired - restate_invoker_concurrency_slots_released)",
            "Attempts that are open now.",
        ),
        _number(
            "Memory",
            "sum(restate_jemalloc_resident_bytes)",
            "Resident memory of the engine's allocator, all nodes.",
            unit="bytes",
        ),
        _graph(
            "Requests at the ingress",
            "{{rpc_service}} {{status}}",
            'sum by (rpc_service, status) (rate(restate_ingress_requests_total{rpc_service!=""}[$__rate_interval]))',
            "By the service that is called.",
            "reqps",
        ),
        _graph(
            "How long they take",
            "{{rpc_service}}",
            'max by (rpc_service) (restate_ingress_request_duration_seconds{quantile="0.99"})',
            "99 % of the requests took no longer, of those the engine remembers.",
            "s",
        ),
        _graph(
            "Attempts",
            "{{status}}",
            "sum by (status) (rate(restate_invoker_invocation_tasks_total[$__rate_interval]))",
            "Attempts that the engine started, and how they ended.",
            "ops",
        ),
        _graph(
            "Applying commands",
            "{{node_name}}",
            "sum by (node_name) (rate(restate_partition_apply_command_duration_seconds_count[$__rate_interval]))",
            "Commands that partitions applied; what the engine does, it does by these.",
            "ops",
        ),
        _graph(
            "From the log to a partition",
            "{{quantile}}",
            "max by (quantile) (restate_partition_record_committed_to_read_latency_seconds)",
            "How long a record took from its commit until a partition read it.",
            "s",
        ),
        _graph(
            "Memory pools",
            "{{name}}",
            "max by (name) (restate_memory_pool_usage_bytes / restate_memory_pool_capacity_bytes)",
            "How full each of the engine's pools is.",
            "percentunit",
        ),
    ),
)

DASHBOARDS = (_OVERVIEW, _SAGAS, _APPROVALS, _SERVICE, _ENGINE)
