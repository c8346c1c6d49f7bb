"""Sagas and dead letters dashboard."""

from __future__ import annotations

from panels import DEAD_LETTERS, Dashboard, graph, last_scan, number

SAGAS = Dashboard(
    "perdure-sagas",
    "Sagas and dead letters",
    (
        DEAD_LETTERS,
        number(
            "Oldest dead letter",
            "max(perdure_dead_letters_oldest_seconds) or vector(0)",
            "Age of the oldest dead letter.",
            unit="s",
        ),
        number(
            "Compensating",
            'sum(max by (service) (perdure_saga_open{phase="compensating"})) or vector(0)',
            "Sagas that roll back.",
        ),
        last_scan("sagas"),
        graph(
            "Sagas open",
            "{{service}} {{phase}}",
            "max by (service, phase) (perdure_saga_open)",
            "Open sagas by phase. orphaned: waiting for the reconciler to start the rollback.",
        ),
        graph(
            "Oldest open saga",
            "{{service}} {{phase}}",
            "max by (service, phase) (perdure_saga_oldest_seconds)",
            "Age of the oldest open saga of each phase, from its start.",
            "s",
        ),
        graph(
            "Sagas started",
            "{{service}}",
            "sum by (service) (rate(perdure_saga_started_total[$__rate_interval]))",
            "Sagas that recorded their first step.",
            "ops",
        ),
        graph(
            "Steps",
            "{{step}} {{outcome}}",
            "sum by (step, outcome) (rate(perdure_saga_steps_total[$__rate_interval]))",
            "Ended steps by outcome.",
            "ops",
        ),
        graph(
            "Compensations",
            "{{step}} {{state}}",
            "sum by (step, state) (rate(perdure_saga_compensations_total[$__rate_interval]))",
            "Compensation attempts. pending: failed, to be retried; dead_letter: failed permanently.",
            "ops",
        ),
        graph(
            "Rollbacks",
            "{{service}} {{outcome}}",
            "sum by (service, outcome) (rate(perdure_saga_rollbacks_total[$__rate_interval]))",
            "Ended rollbacks by outcome.",
            "ops",
        ),
        graph(
            "Operator actions",
            "{{action}}",
            "sum by (action) (increase(perdure_saga_operator_actions_total[$__rate_interval]))",
            "Operator actions on dead letters.",
        ),
        graph(
            "Repairs by the reconciler",
            "{{service}} {{kind}}",
            "sum by (service, kind) (increase(perdure_reconciler_repairs_total[$__rate_interval]))",
            "Orphaned sagas and stuck rollbacks that the reconciler repaired.",
        ),
        graph(
            "Webhook alerts",
            "{{kind}} {{outcome}}",
            "sum by (kind, outcome) (increase(perdure_reconciler_alerts_total[$__rate_interval]))",
            "Alerts sent to the webhook. exhausted: not delivered within a day.",
        ),
    ),
)
