"""Sagas and dead letters: what is under way, and what became of what had to be undone."""

from __future__ import annotations

from panels import DEAD_LETTERS, Dashboard, graph, number, reconciler_looked

SAGAS = Dashboard(
    "perdure-sagas",
    "Sagas and dead letters",
    (
        DEAD_LETTERS,
        number(
            "Oldest dead letter",
            "max(perdure_dead_letters_oldest_seconds) or vector(0)",
            "How long the oldest has waited.",
            unit="s",
        ),
        number(
            "Compensating",
            'sum(max by (service) (perdure_saga_open{phase="compensating"})) or vector(0)',
            "Sagas that are being rolled back.",
        ),
        reconciler_looked("sagas"),
        graph(
            "Sagas open",
            "{{service}} {{phase}}",
            "max by (service, phase) (perdure_saga_open)",
            "By phase. orphaned: the orchestration ended without a rollback; the reconciler starts one.",
        ),
        graph(
            "Oldest open saga",
            "{{service}} {{phase}}",
            "max by (service, phase) (perdure_saga_oldest_seconds)",
            "How long ago the oldest of each phase was started.",
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
            "Steps that came to their end.",
            "ops",
        ),
        graph(
            "Compensations",
            "{{step}} {{state}}",
            "sum by (step, state) (rate(perdure_saga_compensations_total[$__rate_interval]))",
            "Attempts to undo a step. pending: it failed and is tried again; dead_letter: it failed for the last time.",
            "ops",
        ),
        graph(
            "Rollbacks",
            "{{service}} {{outcome}}",
            "sum by (service, outcome) (rate(perdure_saga_rollbacks_total[$__rate_interval]))",
            "Rollbacks that ended.",
            "ops",
        ),
        graph(
            "Operators' acts",
            "{{act}}",
            "sum by (act) (increase(perdure_saga_acts_total[$__rate_interval]))",
            "What operators did about dead letters.",
        ),
        graph(
            "What the reconciler found",
            "{{service}} {{kind}}",
            "sum by (service, kind) (increase(perdure_reconciler_finds_total[$__rate_interval]))",
            "Sagas that nobody looked after any more, handed over or set going again.",
        ),
        graph(
            "News for the webhook",
            "{{kind}} {{outcome}}",
            "sum by (kind, outcome) (increase(perdure_reconciler_alerts_total[$__rate_interval]))",
            "Invocations in trouble, told to the webhook. exhausted: it did not take it for a day.",
        ),
    ),
)
